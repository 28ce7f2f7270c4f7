"""What many runs say together: reads files that runs wrote; never torch, never a stage."""

__all__ = ["audit", "figures", "one_run", "report", "study"]
