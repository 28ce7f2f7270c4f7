"""How runs, cells and metrics are called, and their numbers as tables of text. Imports nothing of ours."""

__all__ = ["cells", "names", "runs", "statements", "studies", "tables", "units", "verdict"]
