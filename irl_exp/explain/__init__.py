"""What a recovered reward pays for, in words, numbers and tokens: statements, their exact ranges, credit per token.

Texts, features and the learned reward go in; never R*.
"""

__all__ = ["candidates", "credit", "examples", "ranges", "statements"]
