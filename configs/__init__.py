"""One experiment per file: what it reproduces, the commands, and the expected result. `paper/` and `ablations/` too."""
