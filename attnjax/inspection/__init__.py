"""Properties of a model: parameter counts, and FLOPs, receptive fields, time and memory from its computation."""
