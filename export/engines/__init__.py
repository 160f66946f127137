"""TensorRT engines of a bundle: flavoured graphs, optimisation profiles, the build, and when it is needed."""
