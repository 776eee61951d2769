"""Training: state, optimizer, step, parallelism, checkpoints, logs, and the loop over them."""
