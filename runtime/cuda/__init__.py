"""CUDA without torch: one GPU, its memory, one stream, captured graphs; over `cuda.bindings`.

Nothing here imports CUDA before a `Device` is made, so that machines without it load as fast as ever.
"""
