"""Between a launch and its workers stands the interchange of Parsl, which is run by this file and ends with the launch.

In a session of its own: what stops the process group of the launch is not to end it before the nodes are given back.
Parsl's alone would live on when the launch is killed, and so would its workers.
"""

from __future__ import annotations

import os
import runpy
import threading
import time


def main() -> None:
    """What Parsl starts."""
    os.setsid()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    runpy.run_module("parsl.executors.high_throughput.interchange", run_name="__main__")


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    main()
