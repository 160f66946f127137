"""Fits the weights of trained pruning methods and writes them as adapters; the model itself stays frozen.

One file per method, called as in ``foveate.pruning.methods``, with a ``Recipe`` and a ``Trainer``; ``loop``
runs any of them. No torch in this file: the command line asks it what can be trained.
"""

TRAINED = ("dyvte", "quecc", "setok", "vistog")
"""Methods that have a trainer here."""
