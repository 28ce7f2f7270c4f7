"""What is measured of rewards and policies: arrays and frames in, numbers out."""

__all__ = ["overoptimisation", "policy_metrics", "reward_comparison", "reward_metrics"]
