"""How errors and paths are told."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from hydra.errors import CompactHydraException


class LaunchError(CompactHydraException):
    """A launch that did not start, or jobs that failed; Hydra prints the message alone and exits with 1."""


class ClusterError(Exception):
    """A cluster that cannot be used: no worker begins there."""


def program() -> str:
    """How this program was called: `irl-exp`, `python -m irl_exp` or `python launch.py`."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return "python -m irl_exp"
    return f"python {shlex.quote(short(called))}" if called.suffix == ".py" else called.name


def one_line(error: BaseException) -> str:
    """The message of an error; of one that is not ours the class too, as its message alone may say little."""
    message = (str(error).strip() or "no message").splitlines()[0]
    return message if type(error).__module__.startswith("irl_exp.") else f"{type(error).__name__}: {message}"


def short(path: Path) -> str:
    """A path as the user would type it: relative where it lies below the current folder."""
    path, here = path.absolute(), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
