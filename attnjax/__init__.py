"""attnjax: a JAX/Flax research codebase for attention models."""

__version__ = "0.1.0"
