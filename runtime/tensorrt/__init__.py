"""Runs TensorRT engines: finds the ones of this machine, binds their memory, replays decoding steps.

`foveate.runtime.backends.tensorrt` puts the parts together. TensorRT itself is called by `library`,
`engine`, `context` and `allocator` only.
"""
