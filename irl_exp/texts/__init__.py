"""Texts: data sets and their parts, the embedded corpus, the lexicon of sentiment."""

__all__ = ["data", "files", "messages", "sentiment", "written"]
