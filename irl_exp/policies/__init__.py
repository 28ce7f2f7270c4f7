"""Language models: loading, sampling, log-probabilities, next-token training, RL."""

__all__ = [
    "adapters",
    "chat",
    "footprint",
    "language_models",
    "likelihood",
    "policy_optimization",
    "ranked_samples",
    "sampling",
    "supervised",
]
