"""Training steps: state, gradients, optimizer, and how they are mapped over devices; no files, no config."""
