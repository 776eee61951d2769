"""The papers' full-size recipes. None was run here; each docstring gives the published result and the cost in FLOPs."""
