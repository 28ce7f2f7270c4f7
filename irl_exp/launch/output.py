"""Standard output, as long as somebody takes it: no result is lost because nobody listens."""

from __future__ import annotations

import io
import os
import sys
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
    def _stdout(self) -> IO[str]:
        """While bars are drawn `sys.stdout` is rich's, which would write here."""
        found: IO[str] = getattr(sys.stdout, "rich_proxied_file", sys.stdout)
        return found

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stdout, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        return self._stdout.isatty()

    def fileno(self) -> int:
        return self._stdout.fileno()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if not self.trouble:
            try:
                self._stdout.write(text)
            except OSError as error:
                self._lost(error)
        return len(text)

    def flush(self) -> None:
        if not self.trouble:
            try:
                self._stdout.flush()
            except OSError as error:
                self._lost(error)

    def _lost(self, error: OSError) -> None:
        """What is still buffered, and what libraries write, must not fail once more when Python ends."""
        self.trouble = error.strerror or str(error)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
