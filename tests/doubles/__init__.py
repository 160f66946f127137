"""Stand-ins for libraries that need a GPU: what passes on them has not run on one."""
