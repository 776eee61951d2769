"""What a batch means: loss, metrics and predictions as pure functions."""
