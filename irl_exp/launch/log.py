"""launch.log: all that a launch has said, with the times."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TextIO

NAME = "launch.log"


class Log:
    """Lines in the order in which they are said; those from before it is opened come first. Without a folder: none.

    Attributes:
        trouble: why it is no longer written, e.g. a full disk, which costs no result of a run.
    """

    def __init__(self, folder: Path | None) -> None:
        self.path = None if folder is None else folder / NAME
        self.trouble = ""
        self._told: list[str] = []
        self._file: TextIO | None = None

    def open(self) -> None:
        """Write what was told so far, and from now on each line as it comes."""
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8", errors="replace")
        except OSError as error:
            self._fail(error)
        self._flush()

    def write(self, text: str) -> None:
        now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        self._told += [f"{now}  {line}".rstrip() for line in text.split("\n")]
        if self._file is not None:
            self._flush()

    def close(self) -> None:
        """The end; what is written then is written nowhere."""
        if self._file is not None:
            self._file.close()
        self._file = self.path = None

    def _flush(self) -> None:
        """To the kernel: a kill of this process loses no line."""
        if self._file is None:
            return
        try:
            self._file.write("".join(f"{line}\n" for line in self._told))
            self._file.flush()
            self._told = []
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        self.trouble = f"{self.path} is not written any more ({error.strerror})"
        self._file = self.path = None
