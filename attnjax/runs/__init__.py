"""A run on disk: its experiment, folder, checkpoints, log and training loop."""
