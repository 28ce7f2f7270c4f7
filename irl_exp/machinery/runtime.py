"""Where a stage runs: the device and precision, and the channel through which it reports while it works."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib.util
import logging
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch.overrides import TorchFunctionMode

from irl_exp.config import VllmSampler

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


READ_AT_ONCE = {"cpu": 4096, "cuda": 32768}
"""Tokens that a model reads at once, padding included, unless `batch_tokens` says. A CPU is as fast with fewer; a GPU
needs tens of thousands to be busy with a small model, and 32,768 take less than 10 GB of one of 8B in bf16, all hidden
states included (33 layers of 4,096)."""


@dataclass(frozen=True)
class Device:
    """A torch device with the precision of its forward passes; weights are in float32, or in bf16 below adapters.

    Attributes:
        batch_tokens: that a model reads at once, padding included.
        vllm: what writes in place of our sampler.
        declared: it is that of workers elsewhere; what this machine has says nothing of it.
    """

    name: str
    precision: Literal["fp32", "bf16"]
    threads: int
    batch_tokens: int = READ_AT_ONCE["cpu"]
    vllm: VllmSampler | None = None
    declared: bool = False

    @property
    def bf16(self) -> bool:
        return self.precision == "bf16" and not _everything_in_fp32

    @property
    def sampler(self) -> str | None:
        """What writes, where our sampler does not."""
        return self.vllm.name if self.vllm else None

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
        with torch.no_grad(), torch.autocast(self.type, torch.bfloat16) if self.bf16 else self.exactly():
            yield

    @contextmanager
    def exactly(self) -> Iterator[None]:
        """Arithmetic in fp32, whatever the precision is, and whatever the weights are kept in."""
        with torch.autocast(self.type, enabled=False), _Widened() if self.precision == "bf16" else nullcontext():
            yield

    @property
    def type(self) -> str:
        return self.name.split(":")[0]


class _Widened(TorchFunctionMode):
    """Weights in bf16 are taken in fp32 where they are used, one layer at a time; activations are fp32 from the start.

    What is not listed promotes by itself: a gain in bf16 times a state in fp32 is fp32.
    """

    taken_in_fp32 = frozenset(
        {
            torch.nn.functional.linear,
            torch.nn.functional.layer_norm,
            torch.nn.functional.rms_norm,
            torch.nn.functional.conv1d,
            torch.addmm,
        }
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.taken_in_fp32:
            args, kwargs = [_wide(value) for value in args], {name: _wide(value) for name, value in kwargs.items()}
        found = func(*args, **kwargs)
        return _wide(found) if func is torch.nn.functional.embedding else found


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 else value


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


def memory(device: Device) -> int | None:
    """Bytes that all work on this device has together: of the GPU, or of the machine as far as its control group lets.

    None where the machine does not say, or where it is another one.
    """
    if device.declared:
        return None
    if not device.is_cpu:
        return int(torch.cuda.get_device_properties(device.name).total_memory)
    try:
        found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    except (AttributeError, ValueError, OSError):
        return None
    return min([*found, *_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])


def _limits(own: Path, groups: Path) -> Iterator[int]:
    """Bytes that the control groups of this process allow, of either version; a container may see the top alone."""
    lines = own.read_text(encoding="utf-8").splitlines() if own.is_file() else []
    for _, controllers, place in (line.split(":", 2) for line in lines):
        if controllers not in ("", "memory"):
            continue
        top = groups / controllers
        inside = top / place.strip("/")
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        for group in {top, *(one for one in (inside, *inside.parents) if one.is_relative_to(top))}:
            with contextlib.suppress(OSError, ValueError):  # "max", or none of our business
                yield int((group / name).read_text(encoding="utf-8"))


def find_device(
    device: str, precision: str, threads: int, batch_tokens: int | None = None, vllm: VllmSampler | None = None
) -> Device:
    """Resolve `auto`: a GPU where there is one, and bf16 on a GPU that has it; threads=0: one a core.

    batch_tokens=None: by the device.

    A process uses one GPU, the first that CUDA_VISIBLE_DEVICES names: with several in sight the trainer would split
    its batches over them.

    Raises:
        DeviceError: there is no GPU here, or no vLLM.
    """
    if vllm and importlib.util.find_spec("vllm") is None:
        raise DeviceError(
            "sampler=vllm: vLLM is not installed here: python -m pip install 'irl-exp[vllm]', or set sampler=own."
        )
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
    workers = (threads or cores()) if name == "cpu" else 1
    at_once = batch_tokens or READ_AT_ONCE["cpu" if name == "cpu" else "cuda"]
    return Device(name, "bf16" if precision == "bf16" else "fp32", workers, at_once, vllm)


def declared_device(
    device: str, precision: str, batch_tokens: int | None = None, vllm: VllmSampler | None = None
) -> Device:
    """The device of workers elsewhere, as the config says it; a CPU computes in fp32 unless told otherwise."""
    name = "cuda:0" if device == "cuda" else "cpu"
    at_once = batch_tokens or READ_AT_ONCE[device]
    return Device(name, "bf16" if precision == "bf16" else "fp32", 1, at_once, vllm, declared=True)


def check_declared(planned: Device, threads: int) -> Device:
    """The device of this worker, which has to be what the launch has planned with.

    Raises:
        DeviceError: it is not; says what this machine has.
    """
    kind = "cpu" if planned.is_cpu else "cuda"
    found = find_device(kind, planned.precision, threads, planned.batch_tokens, planned.vllm)
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


LARGE = 4 * 2**20
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Numbers of mallopt's options, see malloc.h."""


def prepare_process() -> None:
    """Settle what libraries would otherwise decide by the machine: threads, telemetry, chatter.

    To be called before each stage: an earlier one may have loaded libraries, or left them with other threads.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("vllm").setLevel(logging.ERROR)  # TRL opens it wherever it is installed
    _one_thread_an_operation()
    _large_blocks_are_given_back()
    import datasets
    import transformers

    # TRL's own calls of deprecated names of transformers: nothing that a user could act on.
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)
    warnings.filterwarnings("ignore", message="TRL currently supports vLLM")  # ours is asked, not TRL's
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    _what_is_loaded_stays()


@functools.cache
def _what_is_loaded_stays() -> None:
    """Look for garbage in what comes from now on alone: a look at all that the libraries have made takes 0.2 seconds.

    Trainers ask for such a look when they begin, Python itself some ten times a run.
    """
    gc.collect()
    gc.freeze()


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


@functools.cache
def _large_blocks_are_given_back() -> None:
    """Let glibc take blocks of LARGE bytes from the system, and return them, instead of cutting them from its heaps.

    By itself it raises that bound to 32 MB as large blocks are freed, and the tensors of a pass then lie in heaps full
    of holes, one a thread: reading the states of a model of 160M took 1.3 GiB in place of 1.1. It costs no time.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, LARGE)
        libc.mallopt(M_TRIM_THRESHOLD, 16 * LARGE)


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
