"""From a command line to results: all jobs composed, checked, planned, run, recorded and reported."""

__all__ = ["command_line", "jobs", "main", "planner", "sweeps"]
