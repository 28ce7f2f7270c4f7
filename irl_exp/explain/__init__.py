"""What a recovered reward pays for, in words, numbers and tokens: statements, their exact ranges, credit per token."""

__all__ = ["credit", "examples", "ranges"]
