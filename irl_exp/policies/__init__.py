"""Language models: loading, sampling, log-probabilities, next-token training, RL."""

__all__ = [
    "adapters",
    "bases",
    "chat",
    "demonstrated",
    "footprint",
    "gradients",
    "language_models",
    "likelihood",
    "logits",
    "policy_optimization",
    "ranked_samples",
    "sampling",
    "supervised",
    "vllm_engine",
]
