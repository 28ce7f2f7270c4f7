"""Standard output, as long as somebody takes it: no result is lost because nobody listens."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import IO


class Output(io.TextIOBase):
    """What is written goes to `sys.stdout`, until that fails.

    `python launch.py | tee log` loses its reader with the Ctrl-C that ends the launch, `| head` after some lines; the
    disk of a log file may be full. The launch goes on, and everything that it says stands in launch.log.

    Attributes:
        trouble: why nothing is written any more.
    """

    def __init__(self) -> None:
        self.trouble = ""

    @property
    def _stdout(self) -> IO[str] | None:
        """While bars are drawn `sys.stdout` is rich's, which would write here. None for a program without any."""
        found: IO[str] | None = getattr(sys.stdout, "rich_proxied_file", sys.stdout)
        return found

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stdout, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        return self._stdout is not None and self._stdout.isatty()

    def fileno(self) -> int:
        return -1 if self._stdout is None else self._stdout.fileno()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self._until_it_fails(lambda out: out.write(text))
        return len(text)

    def flush(self) -> None:
        self._until_it_fails(lambda out: out.flush())

    def _until_it_fails(self, work: Callable[[IO[str]], object]) -> None:
        if self.trouble or self._stdout is None:
            return
        try:
            work(self._stdout)
        except OSError as error:
            self._lost(error)

    def _lost(self, error: OSError) -> None:
        """What is still buffered, and what libraries write, must not fail once more when Python ends."""
        self.trouble = error.strerror or str(error)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
