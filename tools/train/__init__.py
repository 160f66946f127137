"""Fits the weights of trained pruning methods and writes them as adapters; the model itself stays frozen.

One file per method, called as in ``foveate.pruning.methods``, with a ``Trainer``; ``loop`` runs any of them.
"""
