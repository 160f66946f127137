"""What the rows do: each function is given a `Job` and its row's options, and returns figures."""
