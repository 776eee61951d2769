"""Published weights: reading and writing files, each family's naming of arrays, fitting weights to a model."""
