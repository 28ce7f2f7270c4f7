"""Inverse reinforcement learning of language-model training goals, as a Hydra experiment framework."""

__version__ = "0.1.0"
