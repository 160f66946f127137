"""Pruning methods: small torch modules that choose which tokens stay, and never touch the tokens themselves.

``spec``, ``plan`` and ``registry`` need no torch and are what command lines use; ``selection``, ``budget``,
``evidence``, ``knee`` and ``method`` are what a method in ``methods/`` is written with. Nothing is imported
here, so that the torch-free half stays torch-free.
"""
