"""Properties of a model, read from its traced computation: parameter counts, FLOPs, receptive fields, cost."""
