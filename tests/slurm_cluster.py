"""A Slurm of two nodes on this machine, of ordinary processes in a folder: no systemd, no cgroups, nothing in /etc.

Node `one` has the feature cpu, node `two` the feature gpu, each two slots. Needs slurm-wlm and munge (Debian's names).
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel")
SBIN = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
NODES = {"one": "cpu", "two": "gpu"}
SETTINGS = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdSpoolDir={folder}/spool.%n
StateSaveLocation={folder}/state
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=0
KillWait=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=toy Nodes=ALL Default=YES MaxTime=60 State=UP PriorityTier=1 PreemptMode=CANCEL GraceTime=5
PartitionName=again Nodes=ALL MaxTime=60 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=5
PartitionName=urgent Nodes=ALL MaxTime=60 State=UP PriorityTier=10 PreemptMode=OFF
"""
"""A job of `urgent` takes the nodes of the others' jobs, which are cancelled in `toy` and queued again in `again`."""


def lacks() -> str:
    """Why there can be no Slurm here; "" if there can."""
    missing = [name for name in PROGRAMS if not shutil.which(name, path=SBIN)]
    return f"Slurm is not installed ({', '.join(missing)}): apt-get install slurm-wlm munge" if missing else ""


class Cluster:
    """A running Slurm: `env` makes its commands those of this cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": SBIN}
        self.processes: list[subprocess.Popen[bytes]] = []

    def ask(self, *command: str) -> str:
        """What a command of Slurm says."""
        done = subprocess.run(command, env=os.environ | self.env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def jobs(self, *states: str) -> list[str]:
        """The jobs of the queue, those in these states (RUNNING, PENDING, ...) if any is named."""
        chosen = [f"--states={','.join(states)}"] if states else []
        return self.ask("squeue", "--noheader", "--format=%i", *chosen).split()

    def _begin(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.out").open("wb") as out:
            process = subprocess.Popen(
                command, env=os.environ | self.env, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )
        self.processes.append(process)

    def _until(self, holds: str, wanted: Sequence[str], *command: str) -> None:
        deadline, said = time.monotonic() + 60, ""
        while time.monotonic() < deadline:
            with contextlib.suppress(AssertionError):
                if (said := self.ask(*command)) in wanted:
                    return
            time.sleep(0.2)
        logs = "\n".join(path.read_text(errors="replace")[-1500:] for path in sorted(self.folder.glob("*.log")))
        raise RuntimeError(f"{holds}: {command} says {said!r}\n{logs}")

    def begin(self) -> None:
        (self.folder / "state").mkdir(parents=True)
        self.folder.chmod(0o755)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        ports = list(_free_ports(1 + len(NODES)))
        host = socket.gethostname().partition(".")[0]
        text = SETTINGS.format(host=host, user=getpass.getuser(), folder=self.folder, controller=ports[0])
        for (name, feature), port in zip(NODES.items(), ports[1:], strict=True):
            text += f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 Features={feature}\n"
        (self.folder / "slurm.conf").write_text(text)
        places = {"socket": "munge.socket", "pid-file": "munge.pid", "seed-file": "munge.seed", "log-file": "munge.log"}
        options = [f"--{option}={self.folder / name}" for option, name in places.items()]
        self._begin("munged", "munged", "--foreground", "--force", f"--key-file={key}", *options)
        self._until("munge answers", ["Success"], "bash", "-c", self._munge_check())
        self._begin("slurmctld", "slurmctld", "-D", "-c")
        for name in NODES:
            self._begin(f"slurmd.{name}", "slurmd", "-D", "-N", name)
        self._until("two nodes are idle", ["idle 2"], "sinfo", "--noheader", "--format=%T %D")

    def _munge_check(self) -> str:
        at = f"--socket={self.folder / 'munge.socket'}"
        return f"munge {at} --no-input | unmunge {at} | grep -o Success"

    def end(self) -> None:
        """Cancel what is in the queue and end all processes, by their ids."""
        with contextlib.suppress(Exception):
            if left := self.jobs():
                self.ask("scancel", "--signal=KILL", *left)
                self.ask("scancel", *left)
                time.sleep(1)
        for process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_ports(count: int) -> Iterator[int]:
    with contextlib.ExitStack() as open_ones:
        for _ in range(count):
            found = open_ones.enter_context(socket.socket())
            found.bind(("127.0.0.1", 0))
            yield found.getsockname()[1]


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """A Slurm that ends with the context."""
    found = Cluster(folder)
    try:
        found.begin()
        yield found
    finally:
        found.end()
