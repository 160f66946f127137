"""The benchmark: what a bundle costs on this machine, beside what others cost."""
