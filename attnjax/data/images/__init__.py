"""Images: sources, decoding, augmentation, batches."""
