"""What a recovered reward pays for, in words, numbers and tokens: statements, their exact ranges, credit per token.

Texts, features and the learned reward go in; R* never does.
"""

__all__ = ["candidates", "credit", "examples", "ngrams", "ranges", "statements", "wording"]
