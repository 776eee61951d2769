"""What a batch means for training: its loss and metrics, as pure functions."""
