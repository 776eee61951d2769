"""Layers; they know nothing of data, tasks or configs."""
