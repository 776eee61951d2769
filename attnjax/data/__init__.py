"""Data: images, parallel text and captions, from files or TFDS to batches of NumPy arrays."""
