"""What judges a completion without being recovered: ground truths, the second judge, planted shortcuts."""

__all__ = ["goals", "ground_truth", "judging", "reward", "shortcuts"]
