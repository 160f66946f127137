"""The search for keep rates of the decoder's layers: G-Search and P-Sigmoid (arXiv 2412.00556)."""
