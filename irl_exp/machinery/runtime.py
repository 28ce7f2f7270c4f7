"""Where a stage runs: the device and precision, and the channel through which it reports while it works."""

from __future__ import annotations

import functools
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

Where = Literal["cpu", "gpu"]
"""What a stage needs."""
State = Literal["computing", "waiting", "computed", "reused"]
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
"""Where libraries look, when they are loaded, for the number of threads."""


_everything_in_fp32 = False
"""Whether this process is inside of `in_fp32`."""


class DeviceError(Exception):
    """The device or precision that was asked for is not there."""


@dataclass(frozen=True)
class Event:
    """What a job tells whoever watches it: the state of one of its stages, and how far it is."""

    job: int
    stage: str
    state: State
    done: int = 0
    total: int = 0
    seconds: float = 0.0
    note: str = ""


Report = Callable[[Event], None]


@dataclass(frozen=True)
class Device:
    """A torch device with the precision of its forward passes; weights are kept in float32.

    Attributes:
        declared: it is that of workers elsewhere; what this machine has says nothing of it.
    """

    name: str
    precision: Literal["fp32", "bf16"]
    threads: int
    declared: bool = False

    @property
    def bf16(self) -> bool:
        return self.precision == "bf16" and not _everything_in_fp32

    @property
    def is_cpu(self) -> bool:
        return self.name == "cpu"

    def __str__(self) -> str:
        if self.declared:
            return f"{self.name.split(':')[0]} (of workers elsewhere), {self.precision}"
        hardware = f"{self.threads} thread(s)" if self.is_cpu else torch.cuda.get_device_name(self.name)
        return f"{self.name} ({hardware}), {self.precision}"

    @contextmanager
    def inference(self) -> Iterator[None]:
        """No gradients, and bf16 arithmetic where that is the precision."""
        with torch.no_grad(), torch.autocast(self.name.split(":")[0], torch.bfloat16, enabled=self.bf16):
            yield


@contextmanager
def in_fp32() -> Iterator[None]:
    """Full precision on every device of this process, for numbers that must be the same again elsewhere."""
    global _everything_in_fp32
    before, _everything_in_fp32 = _everything_in_fp32, True
    try:
        yield
    finally:
        _everything_in_fp32 = before


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_device(device: str, precision: str, threads: int) -> Device:
    """Resolve `auto`: a GPU where there is one, and bf16 on a GPU that has it; threads=0: one a core.

    A process uses one GPU, the first that CUDA_VISIBLE_DEVICES names: with several in sight the trainer would split
    its batches over them.

    Raises:
        DeviceError: there is no GPU here.
    """
    if device != "cpu":
        gpus()  # remembers all of them
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    there = device != "cpu" and torch.cuda.is_available()
    if device == "cuda" and not there:
        raise DeviceError("device=cuda: this machine has no usable GPU. Set device=cpu or device=auto.")
    name = "cuda:0" if there else "cpu"
    if precision == "auto":
        precision = "bf16" if name != "cpu" and torch.cuda.is_bf16_supported() else "fp32"
    # On a GPU several threads would only take each other's memory.
    return Device(name, "bf16" if precision == "bf16" else "fp32", (threads or cores()) if name == "cpu" else 1)


def declared_device(device: str, precision: str) -> Device:
    """The device of workers elsewhere, as the config says it; a CPU computes in fp32 unless told otherwise."""
    name = "cuda:0" if device == "cuda" else "cpu"
    return Device(name, "bf16" if precision == "bf16" else "fp32", 1, declared=True)


def check_declared(planned: Device, threads: int) -> Device:
    """The device of this worker, which has to be what the launch has planned with.

    Raises:
        DeviceError: it is not; says what this machine has.
    """
    found = find_device("cpu" if planned.is_cpu else "cuda", planned.precision, threads)
    if found.bf16 and not found.is_cpu and not torch.cuda.is_bf16_supported():
        raise DeviceError(f"{found.name} of this machine has no bf16, and the launch was planned with precision=bf16.")
    return found


@functools.cache
def gpus() -> list[str]:
    """The GPUs that this process might use, as CUDA_VISIBLE_DEVICES names them; the one that it takes is the first."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(number) for number in range(torch.cuda.device_count())]
    return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]


def pinned(visible: Sequence[str], rank: int) -> str:
    """CUDA_VISIBLE_DEVICES of one of several workers of a machine: each has a GPU of its own while there are enough."""
    return visible[rank % len(visible)] if visible else ""


def prepare_process() -> None:
    """Settle what libraries would otherwise decide by the machine: threads, telemetry, chatter.

    To be called before each stage: an earlier one may have loaded libraries, or left them with other threads.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    _one_thread_an_operation()
    import datasets
    import transformers

    # TRL's own call of a deprecated name of transformers: nothing that a user could act on.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def _one_thread_an_operation() -> None:
    """The order of sums, and so the last bits, depend on the threads inside an operation; see machinery/shards.py.

    numpy, scipy and scikit-learn each bring a library of their own and load it when they are imported, which is now.
    What a user's code brings beyond them reads the environment when it is loaded.
    """
    import sklearn  # noqa: F401
    import threadpoolctl

    os.environ |= dict.fromkeys(THREADS, "1")
    torch.set_num_threads(1)
    threadpoolctl.threadpool_limits(1)


@dataclass
class Context:
    """What a stage may use besides its config and inputs.

    Attributes:
        folder: where the files of the artifact go.
        device: where tensors live.
        log: takes one row of the stage's training curve, with its "step".
        report: takes events; use `progress`.
    """

    folder: Path
    device: Device
    log: Callable[[Mapping[str, float]], None]
    report: Report = field(default=lambda event: None)
    job: int = 0
    stage: str = ""
    _last: float = 0.0

    def progress(self, done: int, total: int) -> None:
        """Say how far the stage is; cheap enough for every step."""
        now = time.monotonic()
        if now - self._last > 0.2 or done >= total:
            self._last = now
            self.report(Event(self.job, self.stage, "computing", done, total))
