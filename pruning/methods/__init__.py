"""One method per file; the file's name, with ``-`` for ``_``, is the word that users type.

A method file has a docstring (its first line is the summary), ``SITES``, ``PAPER``, ``Config(MethodConfig)``
and ``Method(PruningMethod)``. Another package can add one by an entry point in the group ``foveate.methods``
that names such a module. ``SITES``, ``PAPER`` and the arguments of ``option`` must be literals (or names from
``foveate.pruning.spec``): listing reads them without importing the file.
"""
