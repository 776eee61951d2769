"""Published weights: reading files, naming arrays as each family does, starting from them."""
