"""Language models: loading, sampling, log-probabilities, next-token training, RL."""

__all__ = ["language_models", "policy_optimization", "supervised"]
