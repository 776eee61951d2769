"""Training steps: state, objective gradients, optimizer, and how they are mapped over devices. Knows no files and no config."""
