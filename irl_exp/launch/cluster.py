"""Warm workers on a cluster, by Parsl: pilot jobs of Slurm, PBS or LSF, or pods, each with workers that do one task
after the other. The only file that knows Parsl.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import logging
import re
import shlex
import shutil
import signal
import site
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from irl_exp.config import ClusterExecutor, KubernetesExecutor, LsfExecutor, PbsExecutor, SlurmExecutor
from irl_exp.launch import interchange
from irl_exp.launch.following import FOLDER, Followed, Seen
from irl_exp.launch.jobs import LaunchContext, PlannedJob
from irl_exp.launch.messages import ClusterError, LaunchError, one_line, short

if TYPE_CHECKING:  # these import torch, or are not needed to show --help
    from irl_exp.launch.console import Console
    from irl_exp.launch.tasks import Task
    from irl_exp.machinery.runtime import Where

TRIES = 4
"""A task whose worker is lost begins again, three times at most."""
PERIOD, THRESHOLD = 5, 40
"""Seconds between two signs of life of a node and the engine, and without one until each takes the other for gone."""
DRAIN = 0.9
"""Of the walltime: after that a node begins no further task."""
COMMANDS = {"slurm": "sbatch", "pbs": "qsub", "lsf": "bsub"}
CLOSING = 8.0
"""Seconds that the engine gets to close."""
LATE = 30.0
"""Seconds after which the launch says that it has no worker yet."""
POLL = 10
"""Seconds between two questions to the scheduler."""


def check(executor: ClusterExecutor) -> None:
    """Refuse a cluster that cannot be reached from here.

    Raises:
        LaunchError: names what is missing and where to get it.
    """
    what = f"executor={executor.name}"
    if importlib.util.find_spec("parsl") is None:
        raise LaunchError(
            f"{what}: Parsl, which runs workers on a cluster, is not installed: pip install 'irl-exp[cluster]'"
        )
    if isinstance(executor, KubernetesExecutor) and importlib.util.find_spec("kubernetes") is None:
        raise LaunchError(f"{what}: its Python client is not installed: pip install 'irl-exp[cluster]' kubernetes")
    if (command := COMMANDS.get(executor.name)) and not shutil.which(command):
        raise LaunchError(f"{what}: there is no {command} here: start the launch where jobs are submitted")


class Pilots:
    """The engine of a launch on a cluster."""

    tries = TRIES

    def __init__(
        self, executor: ClusterExecutor, context: LaunchContext, jobs: Sequence[PlannedJob], console: Console
    ) -> None:
        self._executor, self._context, self._jobs, self._console = executor, context, jobs, console
        self._folder = jobs[0].folder.parent / FOLDER
        self._keys = itertools.count()
        self._open: dict[int, Future[bytes]] = {}
        self._followed = Followed(self._folder, console.show, self._silent, executor.patience)
        self._late = threading.Timer(LATE, self._say_late)

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._brief()
        try:
            self._kernel = _load(self._executor, self._folder)
        except Exception as error:
            raise ClusterError(f"executor={self._executor.name}: Parsl does not start ({one_line(error)})") from error
        self._followed.__enter__()
        self._late.start()
        self._console.say(f"workers   {short(self._folder)}/  (the log of each, and what {self._executor.name} says)")
        return self

    def __exit__(self, *others: object) -> None:
        self._late.cancel()
        with _deaf():
            closing = threading.Thread(target=self._close, daemon=True)
            closing.start()
            closing.join(CLOSING)
            for pool in self._pools():
                if pool.interchange_proc is not None and pool.interchange_proc.poll() is None:
                    pool.interchange_proc.kill()
            self._followed.__exit__()
        self._console.say(self._followed.told())

    def slots(self, where: Where) -> int:
        return self._executor.slots(where) or self._executor.slots("cpu")

    def submit(self, task: Task) -> Future[bytes]:
        import cloudpickle

        from irl_exp.launch import remote

        pool = task.where if self._executor.gpus else "cpu"
        key, future = next(self._keys), Future[bytes]()
        future.set_running_or_notify_cancel()
        self._open[key] = future
        payload = bytes(cloudpickle.dumps(task.work))
        given = self._kernel.submit(
            remote.work,
            executors=[pool],
            cache=False,
            ignore_for_cache=None,
            app_args=(str(self._folder), pool, key, payload),
            app_kwargs={},
        )
        given.add_done_callback(lambda done: self._answered(key, done))
        return future

    def _answered(self, key: int, done: Future[Any]) -> None:
        """The engine has an answer, or has lost the worker; whoever was given up before is not heard any more."""
        from parsl.executors.errors import BadStateException
        from parsl.executors.high_throughput.errors import ManagerLost, WorkerLost

        if (future := self._open.pop(key, None)) is None:
            return
        error = done.exception()
        if error is None:
            future.set_result(done.result())
        elif isinstance(error, BadStateException):
            future.set_exception(ClusterError(self._no_workers(str(error))))
        elif isinstance(error, WorkerLost | ManagerLost):
            worker = self._followed.at(key)
            if worker is not None:
                worker.busy = None
                if isinstance(error, ManagerLost):
                    self._cancel(worker)
            future.set_exception(LostError(_of(worker, "is gone")))
        else:
            future.set_exception(error)

    def _silent(self, worker: Seen) -> None:
        """A worker that is stopped, or whose node hangs: its pilot job is cancelled, and its tasks are lost."""
        self._cancel(worker)
        if worker.busy is not None and (future := self._open.pop(worker.busy, None)):
            future.set_exception(LostError(_of(worker, f"was silent for {self._executor.patience} s")))

    def _cancel(self, worker: Seen) -> None:
        """End the pilot job of a worker; the engine asks for another one."""
        for pool in self._pools():
            job = pool.blocks_to_job_id.get(worker.about.get("block"))
            if job and pool.label == worker.about.get("where"):
                with contextlib.suppress(Exception):  # it has ended
                    pool.provider.cancel([job])

    def _pools(self) -> list[Any]:
        return [pool for label, pool in self._kernel.executors.items() if label in ("cpu", "gpu")]

    def _say_late(self) -> None:
        """After a while without any worker: why, as far as the scheduler says it."""
        if self._followed.workers:
            return
        told = "its pilot jobs wait in the queue"
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            ids = ",".join(str(job) for pool in self._pools() for job in pool.provider.resources)
            if self._executor.name == "slurm" and ids:
                ask = ["squeue", "--noheader", f"--jobs={ids}", "--format=job %i: %T, %r"]
                said = subprocess.run(ask, capture_output=True, text=True, timeout=20, check=True).stdout
                told = "; ".join(said.replace(", None", "").strip().splitlines()) or "its pilot jobs have ended"
        self._console.say(f"no worker of {self._executor.name} yet ({told})")

    def _brief(self) -> None:
        """What workers read when they begin."""
        import cloudpickle

        from irl_exp.launch import executors, remote
        from irl_exp.launch.tasks import declared

        config = self._jobs[0].config
        mission = remote.Mission(
            context=executors.pack(self._context),
            tracking=executors.tracking_of(self._jobs),
            device=declared(config),
            cores=self._executor.cores,
            threads=config.threads or self._executor.cores,
            beat=min(10.0, self._executor.patience / 6),
            place=Path.cwd(),
        )
        (self._folder / remote.LAUNCH).write_bytes(cloudpickle.dumps(mission))

    def _no_workers(self, error: str) -> str:
        """Pilot jobs that cannot be submitted, or end before a worker has begun: what was said last."""
        said = [path for path in self._folder.glob("parsl/*/submit_scripts/*.stderr") if path.stat().st_size]
        last = max(said, key=lambda path: path.stat().st_mtime, default=None)
        text = last.read_text(encoding="utf-8", errors="replace").strip().splitlines() if last else []
        refused = re.findall(r"stderr=(.+)", error)
        told = f" The last one said: {text[-1][:300]} ({short(last)})" if last and text else ""
        told = told or (f" {self._executor.name} said: {refused[-1].strip()[:300]}" if refused else "")
        return (
            f"executor={self._executor.name}: pilot jobs fail, or end before a worker begins. Look at "
            f"executor.setup, partition, account, options and address.{told}"
        )

    def _close(self) -> None:
        """Give all nodes back, and end the engine."""
        for pool in self._pools():
            with contextlib.suppress(Exception):
                if left := [job for job, state in pool.provider.resources.items() if not state["status"].terminal]:
                    pool.provider.cancel(left)
        with contextlib.suppress(Exception):
            self._kernel.cleanup()


class LostError(Exception):
    """A worker that is gone, or silent: which one, and where its log is."""


def _of(worker: Seen | None, what: str) -> str:
    """What is known of a lost worker."""
    if worker is None or not worker.about:
        return f"its worker {what}"
    return f"its worker on {worker.name} {what} (log: {short(Path(worker.about['log']))})"


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Without Ctrl-C: children that begin here do not hear it either, and what closes is not disturbed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _load(executor: ClusterExecutor, folder: Path) -> Any:
    """Parsl with a pool of pilot jobs for each kind of worker."""
    from parsl.config import Config
    from parsl.dataflow.dflow import DataFlowKernel

    logging.getLogger("parsl").propagate = False  # it has a log of its own
    pools = [_pool(executor, where, folder) for where in ("cpu", "gpu") if executor.slots(where)]
    settings = Config(
        executors=pools,
        run_dir=str(folder / "parsl"),
        strategy="htex_auto_scale",
        strategy_period=1,
        max_idletime=executor.idle,
        exit_mode="skip",
        usage_tracking=0,
    )
    with _deaf():
        return DataFlowKernel(settings)


def _pool(executor: ClusterExecutor, where: str, folder: Path) -> Any:
    from parsl.executors import HighThroughputExecutor
    from parsl.jobs.error_handlers import windowed_error_handler

    workers = executor.slots(where) // _nodes(executor, where)
    walltime = getattr(executor, "seconds", None)
    return HighThroughputExecutor(
        label=where,
        provider=_provider(executor, where, workers),
        address=executor.address,
        max_workers_per_node=workers,
        cores_per_worker=1e-6,  # as many workers as were asked for, whatever the node has
        heartbeat_period=PERIOD,
        heartbeat_threshold=THRESHOLD,
        drain_period=walltime and int(DRAIN * walltime),
        interchange_launch_cmd=[sys.executable, "-P", interchange.__file__],
        block_error_handler=windowed_error_handler,
        encrypted=True,
    )


def _nodes(executor: ClusterExecutor, where: str) -> int:
    return executor.nodes if where == "gpu" or not executor.gpus else executor.cpu_nodes


def _provider(executor: ClusterExecutor, where: str, workers: int) -> Any:
    """How nodes of a pool are asked for; all of them are given back when there is nothing to do."""
    blocks = {"init_blocks": 0, "min_blocks": 0, "max_blocks": _nodes(executor, where), "nodes_per_block": 1}
    cores, gpus = workers * executor.cores, executor.gpus if where == "gpu" else 0
    if isinstance(executor, KubernetesExecutor):
        return _pods(executor, blocks, cores, gpus)
    assert isinstance(executor, SlurmExecutor | PbsExecutor | LsfExecutor)
    plain = where == "cpu" and executor.gpus > 0
    partition = (executor.cpu_partition if plain else None) or executor.partition
    options = executor.cpu_options if plain else executor.options
    common = {"walltime": executor.walltime, "worker_init": _setup(executor), **blocks}
    if isinstance(executor, SlurmExecutor):
        from parsl.providers import SlurmProvider

        asked = [f"--gpus-per-node={gpus}"] if gpus else []
        slurm: type = type("Slurm", (SlurmProvider,), {"status_polling_interval": POLL})
        return slurm(
            partition=partition,
            account=executor.account,
            cores_per_node=cores,
            mem_per_node=executor.memory,
            scheduler_options="\n".join(f"#SBATCH {option}" for option in (*asked, *options)),
            exclusive=False,
            **common,
        )
    if isinstance(executor, PbsExecutor):
        from parsl.providers import PBSProProvider

        memory = f"mem={executor.memory}gb" if executor.memory else ""
        return PBSProProvider(
            queue=partition,
            account=executor.account,
            cpus_per_node=cores,
            select_options=":".join(filter(None, [f"ngpus={gpus}" if gpus else "", memory])),
            scheduler_options="\n".join(f"#PBS {option}" for option in options),
            **common,
        )
    from parsl.providers import LSFProvider

    needs = [f"-gpu num={gpus}" if gpus else "", f"-M {executor.memory}G" if executor.memory else ""]
    return LSFProvider(
        queue=partition,
        project=executor.account,
        cores_per_node=cores,
        cores_per_block=cores,
        scheduler_options="\n".join(f"#BSUB {option}" for option in (*options, *filter(None, needs))),
        request_by_nodes=False,
        **common,
    )


def _pods(executor: KubernetesExecutor, blocks: dict[str, int], cores: int, gpus: int) -> Any:
    from parsl.providers import KubernetesProvider

    memory = {"max_mem": f"{executor.memory}Gi", "init_mem": f"{executor.memory}Gi"} if executor.memory else {}
    devices = {"nvidia.com/gpu": str(gpus)} if gpus else None
    return KubernetesProvider(
        image=executor.image,
        namespace=executor.namespace,
        max_cpu=cores,
        init_cpu=cores,
        extra_requests=devices,
        extra_limits=devices,
        worker_init=executor.setup,
        persistent_volumes=[tuple(volume.split(":", 1)) for volume in executor.volumes],
        service_account_name=executor.service_account,
        **memory,
        **blocks,
    )


def _setup(executor: ClusterExecutor) -> str:
    """Before the workers of a pilot job start: this environment and this package, and then what the site says."""
    root = str(Path(__file__).parents[2])
    lines = [f"export PATH={shlex.quote(sysconfig.get_path('scripts'))}:$PATH"]
    if root not in site.getsitepackages():
        lines += [f"export PYTHONPATH={shlex.quote(root)}${{PYTHONPATH:+:$PYTHONPATH}}"]
    return "\n".join([*lines, "export PYTHONUNBUFFERED=1", executor.setup])
