"""launch.py in a process that is forked from one that has loaded the libraries: some 4 s less for each launch.

All else is as for a user: a process and process group, a folder, an environment and files of its own. As a program it
reads one request a line, and answers with the id of the launch, and with its exit code when it has ended.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LAUNCH = Path(__file__).parents[1] / "launch.py"
LIBRARIES = (
    *("hydra", "omegaconf", "pydantic", "torch", "transformers", "sklearn.neural_network", "scipy.stats", "pandas"),
    *("pyarrow.parquet", "accelerate", "datasets", "trl", "transformers.trainer", "rich.progress", "cloudpickle"),
    *("transformers.models.gpt_neox.modeling_gpt_neox", "textblob"),
)


class WarmLaunches:
    """The process that has loaded the libraries; it starts with the first launch."""

    def __init__(self) -> None:
        self.server: subprocess.Popen[str] | None = None
        self.running: int | None = None

    def run(
        self, cwd: Path, arguments: Sequence[str], env: Mapping[str, str], files: Path, patience: float
    ) -> tuple[int, str, str]:
        """Exit code, standard output and standard error of a launch, which go through two files."""
        server = self.server = self.server or self._begin(env)
        assert server.stdin is not None
        assert server.stdout is not None
        out, err = files / "stdout", files / "stderr"
        asked = {"arguments": list(arguments), "cwd": str(cwd), "env": dict(env), "out": str(out), "err": str(err)}
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        self.running = int(server.stdout.readline())
        watch = threading.Timer(patience, self._kill)
        watch.start()
        try:
            code = int(server.stdout.readline())
        finally:
            watch.cancel()
        self.running = None
        return code, out.read_text(), err.read_text()

    def _kill(self) -> None:
        """End the launch that runs, with all that it has started."""
        if self.running is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.running, signal.SIGKILL)

    def _begin(self, env: Mapping[str, str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, __file__], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def stop(self) -> None:
        self._kill()
        if self.server is not None:
            self.server.kill()
            self.server.communicate()


def serve() -> None:
    for name in LIBRARIES:
        importlib.import_module(name)
    assert "wandb" not in sys.modules, "it makes a folder when it is imported, which the first launch would remove"
    for line in sys.stdin:
        launch = os.fork()
        if not launch:
            _launch(json.loads(line))
        print(launch, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(launch, 0)[1]), flush=True)


def _launch(asked: Mapping[str, Any]) -> None:
    """In the new process: what the interpreter does with a script, from its first line to its end."""
    os.setsid()
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    for descriptor, (name, flags) in enumerate(
        [(os.devnull, os.O_RDONLY), (asked["out"], os.O_WRONLY | os.O_CREAT), (asked["err"], os.O_WRONLY | os.O_CREAT)]
    ):
        opened = os.open(name, flags)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.argv = [str(LAUNCH), *asked["arguments"]]
    sys.path[0] = str(LAUNCH.parent)
    code: Any = 1
    try:
        runpy.run_path(str(LAUNCH), run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    serve()
