"""The papers' ablations as sweeps, scaled down to two CPU cores."""
