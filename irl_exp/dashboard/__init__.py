"""W&B workspaces and reports of a launch, from its files; no torch, and nobody imports it."""

__all__ = []
