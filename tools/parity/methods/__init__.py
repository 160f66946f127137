"""One oracle for each pruning method: the paper's rule once more, in numpy and plain loops, double precision.

A file is named as the method's is and has a function for each site where the method works:
``encoder(params, facts, budget)`` and ``decoder(params, facts, budget)``, both giving a ``Choice``. Nothing
here comes from ``foveate.pruning``. ``params`` are all options of the cut, ``facts`` what transformers
computed for one item or one sequence.
"""
