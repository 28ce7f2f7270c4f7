"""A reward from demonstrations: contrast pairs, features, losses, heads, methods, and what a method leaves behind."""

__all__ = ["backbones", "contrast", "features", "heads", "learned_rewards", "methods"]
