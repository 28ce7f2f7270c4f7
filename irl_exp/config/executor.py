"""Where the stages and jobs of a launch run: processes of this machine, or warm workers on a cluster."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from irl_exp.config.nodes import Count, Node

WALLTIME = r"^\d{1,3}:[0-5]\d:[0-5]\d$"

Word = Annotated[str, Field(pattern=r"^[^\s'\"]+$")]
"""What goes into a script of a scheduler as one word."""

Line = Annotated[str, Field(pattern=r"^[^\n\r]*$")]


class LocalExecutor(Node):
    """Processes of this machine; how many the option `workers` says."""

    name: Literal["local"] = "local"


class ClusterExecutor(Node):
    """Pilot jobs, a node each, with workers that stay warm and do one stage after the other.

    With `gpus` there are two pools of them: stages that need a GPU go to one, all others to one without.
    """

    name: str
    nodes: Count = Field(1, description="pilot jobs at once, a node each")
    workers: Count = Field(1, description="workers of a node; on nodes with GPUs there is one a GPU")
    gpus: Annotated[int, Field(ge=0, le=64)] = Field(0, description="GPUs of a node; 0: every stage runs on the CPU")
    cpu_nodes: Count = Field(1, description="with gpus: pilot jobs at once for the stages that need none")
    cpu_workers: Count = Field(1, description="with gpus: workers of such a node")
    cores: Count = Field(1, description="CPU cores of a worker")
    memory: Count | None = Field(None, description="GiB of a node; null: what the scheduler gives")
    gpu_memory: Count | None = Field(None, description="GiB of a GPU: what cannot fit is refused; null: not known")
    setup: Line = Field(
        "", description="shell line before the workers start: modules, an environment with this package"
    )
    address: Word | None = Field(
        None, description="of this machine, as the nodes reach it; null: they try all that it has"
    )
    patience: Annotated[int, Field(ge=10)] = Field(
        180, description="seconds: a worker that is silent so long is given up, and its stage begins elsewhere"
    )
    idle: Annotated[int, Field(ge=1)] = Field(120, description="seconds after which nodes without work are given back")

    def slots(self, where: str) -> int:
        """Workers of a pool, "gpu" or "cpu"; without GPUs there is one pool, "cpu"."""
        if not self.gpus:
            return self.nodes * self.workers if where == "cpu" else 0
        return self.nodes * self.gpus if where == "gpu" else self.cpu_nodes * self.cpu_workers


class _BatchExecutor(ClusterExecutor):
    """What schedulers of batch jobs have in common."""

    walltime: Annotated[str, Field(pattern=WALLTIME)] = Field(
        "04:00:00", description="HH:MM:SS of a pilot job; a stage that takes longer never ends"
    )
    account: Word | None = Field(None, description="that pays")
    partition: Word | None = Field(None, description="partition or queue of the pilot jobs")
    cpu_partition: Word | None = Field(
        None, description="with gpus: of those for stages that need none; null: the same"
    )
    options: tuple[Line, ...] = Field((), description="more options of the scheduler: ['--constraint=a100']")
    cpu_options: tuple[Line, ...] = Field((), description="with gpus: the same for stages that need none")

    @property
    def seconds(self) -> int:
        """The walltime."""
        hours, minutes, seconds = map(int, self.walltime.split(":"))
        return 3600 * hours + 60 * minutes + seconds

    @model_validator(mode="after")
    def _long_enough(self) -> Self:
        if self.seconds < 60:
            raise ValueError(f"walltime={self.walltime}: a pilot job needs a minute at least (HH:MM:SS)")
        return self


class SlurmExecutor(_BatchExecutor):
    """Jobs of Slurm: sbatch, squeue and scancel."""

    name: Literal["slurm"] = "slurm"


class PbsExecutor(_BatchExecutor):
    """Jobs of PBS Pro: qsub, qstat and qdel."""

    name: Literal["pbs"] = "pbs"


class LsfExecutor(_BatchExecutor):
    """Jobs of LSF: bsub, bjobs and bkill."""

    name: Literal["lsf"] = "lsf"


class KubernetesExecutor(ClusterExecutor):
    """Pods of Kubernetes."""

    name: Literal["kubernetes"] = "kubernetes"
    image: Word = Field(description="of the pods: has this package with its extra [cluster]")
    namespace: Word = Field("default", description="of the pods")
    volumes: tuple[Annotated[str, Field(pattern=r"^[^\s:]+:/\S*$")], ...] = Field(
        (), description="CLAIM:/PATH of the shared folders; launch and store lie in them, at the same paths as here"
    )
    service_account: Word | None = Field(None, description="as which the pods run")


ExecutorConfig = Annotated[
    LocalExecutor | SlurmExecutor | PbsExecutor | LsfExecutor | KubernetesExecutor, Field(discriminator="name")
]
