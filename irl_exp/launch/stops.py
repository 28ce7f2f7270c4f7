"""Ctrl-C and SIGTERM: one way to stop, that nothing swallows."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # these import torch, or are not needed to show --help
    from irl_exp.machinery.runtime import Event, Report

_stopped = False
"""Whether this process was told to stop."""


def _answered() -> dict[int, Any]:
    """Ctrl-C and SIGTERM with what answers them now; what is ignored, as under nohup, stays ignored."""
    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    return {number: answer for number, answer in found.items() if answer not in (signal.SIG_IGN, None)}


@contextlib.contextmanager
def on_stop(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Let the handler answer Ctrl-C and SIGTERM."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = _answered()
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def end_at_once() -> None:
    """From now on a stop ends this process, and with 130: what is to be closed before answers stops itself."""
    for number in _answered():
        signal.signal(number, _end)


def _end(number: int, frame: object) -> None:
    try:
        sys.stdout.flush()
    finally:
        os._exit(130)


@contextlib.contextmanager
def terminate_like_interrupt() -> Iterator[None]:
    """A scheduler's SIGTERM closes runs and writes the summary, as Ctrl-C does.

    Python drops an exception that meets it in a finalizer; a stop that was lost so comes again with the next report.
    """
    global _stopped
    _stopped = False
    with on_stop(_stop):
        yield


def _stop(number: int, frame: object) -> None:
    global _stopped
    _stopped = True
    raise KeyboardInterrupt


def told_to_stop() -> bool:
    """Whether this process got Ctrl-C or SIGTERM; without them a KeyboardInterrupt is an error of who raised it."""
    return _stopped


def stop_if_told() -> None:
    """End here what a library has ended before: some take a stop for the wish for half a result.

    Raises:
        KeyboardInterrupt: this process was told to stop.
    """
    if _stopped:
        raise KeyboardInterrupt


def unless_stopped(report: Report) -> Report:
    """The same channel, which ends the job once it was told to stop."""

    def told(event: Event) -> None:
        stop_if_told()
        report(event)

    return told
