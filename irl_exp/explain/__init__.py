"""What a learned reward pays for, in words: candidates, choice, tests, edits. Texts, features and R in; never R*."""

__all__ = ["candidates", "statements"]
