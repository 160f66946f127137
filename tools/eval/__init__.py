"""The table of all methods: each one's bundle, its points, its speed, and the report about them."""
