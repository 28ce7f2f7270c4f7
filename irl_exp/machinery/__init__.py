"""What knows no machine learning: the store, Weights & Biases, and where and how a stage runs."""

__all__ = ["heartbeat", "runtime", "shards", "store", "tensors", "tracking"]
