"""Layers, independent of data, tasks and configs."""
