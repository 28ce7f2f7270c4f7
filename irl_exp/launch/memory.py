"""What each stage will need in memory, beside what there is: said before anything starts, and refused where it is less.

The arithmetic knows of a stage what its node says (`Work`) and of its model what the configuration says (`Footprint`).
benchmarks/memory.py compares it with what stages take.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast, get_args

import transformers

from irl_exp.config import (
    BenchmarkConfig,
    DataConfig,
    DemonstrationsConfig,
    DpoConfig,
    EvaluateConfig,
    FeaturesConfig,
    FrozenBackbone,
    LoraConfig,
    MarginConfig,
    ModelConfig,
    Node,
    PolicyOptimizationConfig,
    Recipe,
    SequenceClassifierConfig,
    SftConfig,
    TextsExpert,
    WeightedConfig,
)
from irl_exp.irl.contrast import AT_ONCE, OVERSAMPLED
from irl_exp.launch.models import PreflightError
from irl_exp.machinery.runtime import READ_AT_ONCE
from irl_exp.policies.footprint import Footprint, FootprintError, footprint
from irl_exp.policies.language_models import READ_TOGETHER
from irl_exp.policies.likelihood import TRAINED_TOGETHER
from irl_exp.policies.logits import LOGITS_AT_ONCE
from irl_exp.policies.sampling import SAMPLED_TOGETHER
from irl_exp.report.tables import Table
from irl_exp.stages.sft import HELD_OUT
from irl_exp.stages.step import Step

GIB = 2**30
NUMBER, EXACT = 4, 8
"""Bytes of a number in fp32 and in fp64."""
RANK = LoraConfig.model_fields["rank"].default
"""Of the adapters that adapter=lora puts on."""
LIBRARIES, BESIDE = 600 * 2**20, 30 * 2**20
"""What a process takes on the CPU with the libraries of a stage, and at work beside all that is counted here."""
EASY = 0.1
"""Of the device: what needs less is no matter."""
WORD = 1.5
"""Tokens of a word, where nobody has counted them."""
WRITERS = (Recipe, DemonstrationsConfig, EvaluateConfig, *get_args(BenchmarkConfig))
"""Nodes that say how long a completion may be."""


# ------------------------------------------------------------------------------------------ what a stage does


@dataclass(frozen=True)
class Work:
    """What a stage does with its model: all that decides how much memory it takes.

    Attributes:
        model: its model.
        adapted: the same with weights in bf16, as they lie below adapters.
        tokens: of prompt and completion together, the longest; `predicted` of them are the completion's.
        copies: of the weights.
        trained: whether its weights are, or adapters of `rank` on them.
        entropy: whether that of each token is computed in training.
        rows, fewest: completions of a forward and backward pass, and how many there are at least.
        written, together: completions that are sampled, and how many of them in one shard.
        read: completions that are read without gradients.
        batch_tokens: tokens that a model reads at once.
        read_layers: whether that keeps the states of all layers.
        features: rows and columns of the features.
        ridges: of these many a head is fitted to the features; 0 if none is.
        components: of the features that are fitted; None: all columns.
        beside: bytes of other models.
        micro: the option of `rows`; "" if there is none.
        batch: the option of `together`.
    """

    stage: str
    model: Footprint
    adapted: Callable[[], Footprint] | None = None
    tokens: int = 0
    predicted: int = 0
    copies: int = 1
    trained: bool = False
    rank: int | None = None
    checkpointing: bool = False
    entropy: bool = False
    rows: int = 0
    fewest: int = 1
    written: int = 0
    together: int = SAMPLED_TOGETHER
    read: int = 0
    batch_tokens: int = READ_AT_ONCE["cpu"]
    read_layers: bool = False
    features: tuple[int, int] = (0, 0)
    ridges: int = 0
    components: int | None = None
    beside: int = 0
    micro: str = ""
    batch: str = ""


@dataclass(frozen=True)
class Place:
    """Where it is done: the kind of device, its threads, and the bytes that it has (None: not known).

    `name` is what has them, `workers` the option that says how many share them, `engine` the bytes of vLLM's cache,
    where that writes.
    """

    kind: str = "cpu"
    threads: int = 1
    memory: int | None = None
    batch_tokens: int = READ_AT_ONCE["cpu"]
    name: str = "this machine"
    workers: str = "workers"
    engine: int = 0

    @property
    def process(self) -> int:
        return LIBRARIES + BESIDE if self.kind == "cpu" else 0


@dataclass(frozen=True)
class Need:
    """Bytes of a stage at its peak, by what they are for."""

    work: Work
    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


PARTS = ("process", "weights", "optimiser", "gradients", "activations", "logits", "cache", "features")
"""Columns of the table, in this order; `cache` is that of a sampler."""


def need(work: Work, place: Place) -> Need:
    """The most that lives at once: of training, sampling and reading the largest, on what lies there all the time."""
    model = work.model
    trained = 0 if not work.trained else model.parameters if work.rank is None else work.rank * model.adapted
    adapters = NUMBER * trained if work.rank is not None else 0
    # A checkpoint in fp32 is mapped on a CPU: what nobody reads of it is not there, as the head where states are read.
    states_alone = work.read_layers and not work.written and not work.trained and model.weight == NUMBER
    unread = NUMBER * model.head if place.kind == "cpu" and states_alone else 0
    # Below adapters the head stays in fp32.
    widened = 0 if model.weight == NUMBER else (NUMBER - model.weight) * model.head
    lasting = {
        "process": place.process,
        "weights": work.copies * (model.weights + widened - unread) + adapters + work.beside + _engine(work, place),
        "optimiser": 2 * NUMBER * trained,
        "features": _features(work),
        "cache": place.engine,
    }
    phases = [*_training(work, place, trained), _sampling(work, place), *_reading(work, place)]
    return Need(work, _joined(lasting, max(phases, key=lambda parts: sum(parts.values()))))


def _training(work: Work, place: Place, trained: int) -> Iterator[dict[str, int]]:
    """As the backward pass begins, and as it ends.

    Graphs of all shards are kept, and the head comes first: its logits are made again, and it has its gradient. The
    layers of a shard free their graph as they get gradients of its own, which are added to those of the shards before.
    """
    if not work.trained:
        return
    model, rows = work.model, _shard(work, place, work.rows, TRAINED_TOGETHER)
    shards = -(-work.rows // rows)
    at_once = min(place.threads, shards)
    tokens, shard = work.rows * work.tokens, rows * work.tokens
    kept = model.checkpointed if work.checkpointing else model.kept
    of_adapters = 0 if work.rank is None else 2 * model.inputs
    logits = rows * work.predicted * model.vocabulary
    kept_logits = shards * logits if logits <= LOGITS_AT_ONCE[place.kind] else 0
    activations = round((kept + of_adapters) * tokens + model.passing * shard * at_once) + model.cast * shards
    yield {
        "gradients": NUMBER * at_once * model.head if work.rank is None else 0,
        "activations": activations,
        "logits": NUMBER * (at_once * _copies(logits, place, 3 + 2 * work.entropy, 2 + work.entropy) + kept_logits),
    }
    yield {
        "gradients": NUMBER * trained * (at_once + (shards > at_once)),
        "activations": activations * (shards - at_once) // shards,
    }


def _engine(work: Work, place: Place) -> int:
    """vLLM has the weights once more, in the numbers of the arithmetic; adapters are added to them on the way there."""
    if not place.engine:
        return 0
    model = work.model
    number = NUMBER // 2 if model.cast else model.weight
    return number * model.parameters + (model.weights if work.rank is not None else 0) + place.process


def _sampling(work: Work, place: Place) -> dict[str, int]:
    if not work.written or place.engine:
        return {}
    model, together = work.model, min(work.written, work.together)
    at_once = min(place.threads, -(-work.written // together))
    cache = together * work.tokens * model.cache
    return {
        # One layer's cache is there twice when a token is put to it.
        "cache": round(at_once * cache * (1 + 1 / max(1, model.layers))),
        "logits": NUMBER * 3 * at_once * together * model.vocabulary,
        "activations": at_once * (round(model.passing * together) + model.cast),
    }


def _reading(work: Work, place: Place) -> Iterator[dict[str, int]]:
    """As the model reads, where states of all layers may be kept, and then as they become features, or logits."""
    if not work.read:
        return
    model, rows = work.model, _shard(work, place, work.read, READ_TOGETHER)
    at_once = min(place.threads, -(-work.read // rows))
    every = model.layers * model.state if work.read_layers else 0
    # Of features: layers that are joined, and once more where they are pooled.
    joined = 2 * NUMBER * work.features[1] if work.read_layers else 0
    for states in (model.passing + every, every + joined):
        yield {"activations": at_once * (round(states * rows * work.tokens) + model.cast)}
    if not work.read_layers:
        logits = rows * work.predicted * model.vocabulary
        yield {"activations": at_once * model.cast, "logits": NUMBER * at_once * _copies(logits, place, 3, 3)}


def _shard(work: Work, place: Place, rows: int, most: int) -> int:
    """Completions that go through the model at once."""
    fitting = max(1, work.batch_tokens // max(1, work.tokens))
    return min(rows, fitting, most if place.kind == "cpu" else rows)


def _copies(logits: int, place: Place, whole: int, parts: int) -> int:
    """Numbers that live while a shard's logits are worked on: so many copies of all, or of a part of them.

    Of parts of training there are fewer, as each is worked on in place. benchmarks/memory.py has shown how many.
    """
    part = LOGITS_AT_ONCE[place.kind]
    return whole * logits if logits <= part else parts * part


def _features(work: Work) -> int:
    """Features in fp32 and the join of their parts; of a fit the file, and differences of pairs or components."""
    rows, columns = work.features
    if not work.ridges:
        return 2 * NUMBER * rows * columns
    file = NUMBER * rows * columns
    if work.components is not None:
        return file + NUMBER * 5 * rows * work.components // 2 + 3 * EXACT * columns * (work.components + OVERSAMPLED)
    pairs = (EXACT if rows * columns <= AT_ONCE else NUMBER) * rows * columns // 2
    return file + 2 * pairs + EXACT * columns**2 * (work.ridges + 3)


def _joined(*parts: Mapping[str, int]) -> dict[str, int]:
    return {name: sum(one.get(name, 0) for one in parts) for name in PARTS}


# ------------------------------------------------------------------------------------------ what would make it fit


@dataclass(frozen=True)
class Remedy:
    """An option that makes a stage smaller: how it is written, and what it makes of the work, mildest first."""

    option: str
    changed: Callable[[Work], Iterator[tuple[int, Work]]]

    def strongest(self, work: Work) -> tuple[str, Work] | None:
        """The option at its smallest, and the work then; None where it has none of it."""
        found = list(self.changed(work))
        return self._told(work, *found[-1]) if found else None

    def fitting(self, work: Work, place: Place, memory: int) -> tuple[str, Work] | None:
        """The mildest that makes it fit."""
        for value, smaller in self.changed(work):
            if need(smaller, place).total <= memory:
                return self._told(work, value, smaller)
        return None

    def _told(self, work: Work, value: int, smaller: Work) -> tuple[str, Work]:
        names = {"node": work.micro.partition(".")[0], "micro": work.micro, "batch": work.batch, "value": value}
        return self.option.format(**names), smaller


def _with_adapter(work: Work) -> Iterator[tuple[int, Work]]:
    if work.trained and work.rank is None and work.adapted is not None:
        yield RANK, replace(work, model=work.adapted(), rank=RANK, copies=1)


def _checkpointed(work: Work) -> Iterator[tuple[int, Work]]:
    if work.trained and work.micro and not work.checkpointing:
        yield 1, replace(work, checkpointing=True)


def _fewer_rows(work: Work) -> Iterator[tuple[int, Work]]:
    for rows in _smaller(work.rows, work.fewest) if work.trained and work.micro else ():
        yield rows, replace(work, rows=rows)


def _fewer_written(work: Work) -> Iterator[tuple[int, Work]]:
    for rows in _smaller(min(work.together, work.written), 1) if work.batch else ():
        yield rows, replace(work, together=rows)


def _fewer_read(work: Work) -> Iterator[tuple[int, Work]]:
    for rows in _smaller(2 ** int(math.log2(max(1, work.batch_tokens // max(1, work.tokens)))), 1) if work.read else ():
        yield rows * work.tokens, replace(work, batch_tokens=rows * work.tokens)


def _smaller(rows: int, fewest: int) -> list[int]:
    """Parts of a batch: its divisors that are multiples of the fewest, from the largest on."""
    small = [size for size in range(1, math.isqrt(rows) + 1) if rows % size == 0]
    found = {*small, *(rows // size for size in small)} - {rows}
    return sorted((size for size in found if size % fewest == 0), reverse=True)


REMEDIES = (
    Remedy("adapter=lora", _with_adapter),
    Remedy("{node}.gradient_checkpointing=true", _checkpointed),
    Remedy("{micro}={value}", _fewer_rows),
    Remedy("batch_tokens={value}", _fewer_read),
    Remedy("{batch}={value}", _fewer_written),
)
"""In the order in which they are proposed. A new option that saves memory is a line here."""


def advice(work: Work, place: Place, memory: int) -> str:
    """The two options that would make it fit, each alone if there are such; else two together, or a smaller model."""
    alone = [found[0] for remedy in REMEDIES if (found := remedy.fitting(work, place, memory))]
    model = f"a model of about {_short(work.model.parameters * memory / need(work, place).total)} parameters at most"
    if alone:
        return f"{alone[0]}, or {[*alone, model][1]}"
    for first, second in itertools.combinations(REMEDIES, 2):
        smaller = first.strongest(work)
        both = second.fitting(smaller[1], place, memory) if smaller else None
        if smaller and both:
            return f"{smaller[0]} and {both[0]} together, or {model}"
    return f"{model}; no two of the options are enough"


def _short(count: float) -> str:
    return f"{count / 1e9:.1f} B" if count >= 1e9 else f"{count / 1e6:.0f} M"


# ------------------------------------------------------------------------------------------ what is said


def gib(count: float) -> str:
    """Bytes for people."""
    found = count / GIB
    return f"{found:.0f}" if found >= 99.5 else f"{found:.1f}"


def refusal(found: Need, place: Place) -> str:
    """Why a stage cannot run; "" where it can, as far as that is known."""
    if place.memory is None or found.total <= place.memory:
        return ""
    parts = ", ".join(f"{name} {gib(size)}" for name, size in found.parts.items() if size >= 0.05 * GIB)
    return (
        f"{found.work.stage}: needs about {gib(found.total)} GiB of memory ({parts}), and {place.name} has "
        f"{gib(place.memory)} GiB. What would make it fit: {advice(found.work, place, place.memory)}."
    )


def told(needs: Sequence[Need], place: Place) -> list[str | Table]:
    """One line where all fits easily, and a table where it matters."""
    if not needs:
        return []
    largest = max(needs, key=lambda one: one.total)
    where = "" if place.memory is None else f" of {gib(place.memory)} GiB"
    line = f"memory: a job needs at most about {gib(largest.total)} GiB{where} ({largest.work.stage})"
    if place.memory is None or largest.total <= EASY * place.memory:
        return [line]
    by_stage = {one.work.stage: one for one in sorted(needs, key=lambda one: one.total)}
    rows = [one for one in needs if by_stage[one.work.stage] is one and one.total > EASY * place.memory]
    names = [name for name in PARTS if any(one.parts[name] for one in rows)]
    table = Table(
        f"Memory that each stage will need, GiB{where}",
        ("stage", *names, "together"),
        tuple((one.work.stage, *(gib(one.parts[name]) for name in names), gib(one.total)) for one in rows),
    )
    return [line, table]


def at_once(jobs: Iterable[Mapping[str, Need]], workers: int, memory: int | None) -> int:
    """How many jobs fit beside each other, at most `workers`, if each is at its largest and none computes the same.

    Args:
        jobs: what each job lacks, by digest.
    """
    sizes, taken = [], set[str]()
    for needs in jobs:
        left = {digest: one.total for digest, one in needs.items() if digest not in taken}
        if left:
            largest = max(left, key=lambda digest: left[digest])
            taken.add(largest)
            sizes.append(left[largest])
    together = itertools.accumulate(sorted(sizes, reverse=True)[:workers])
    fitting = [number for number, size in enumerate(together, start=1) if memory is None or size <= memory]
    return workers if len(sizes) < workers and len(fitting) == len(sizes) else max(1, len(fitting))


# ------------------------------------------------------------------------------------------ of a step


@dataclass
class Planned:
    """What is known of the missing steps: needs by digest, and why some are not known."""

    place: Place
    needs: dict[str, Need] = field(default_factory=dict)
    unknown: dict[str, None] = field(default_factory=dict)

    def add(self, step: Step, precision: str) -> None:
        """Predict a step.

        Raises:
            PreflightError: it cannot fit.
        """
        try:
            work = of_step(step, precision, self.place)
        except FootprintError as error:
            self.unknown[f"memory: not known, {error}"] = None
            return
        if work is None:
            return
        found = self.needs[step.identity.digest] = need(work, self.place)
        if reason := refusal(found, self.place):
            raise PreflightError(reason)

    def at_once(self, jobs: Iterable[Iterable[str]], workers: int) -> int:
        """How many jobs fit beside each other, at most `workers`; `jobs` are the digests of each job's steps."""
        if self.place.kind != "cpu":  # each worker has a GPU of its own
            return workers
        needs = [{digest: self.needs[digest] for digest in one if digest in self.needs} for one in jobs]
        return at_once(needs, workers, self.place.memory)

    def told(self, workers: int, fitting: int, asked: bool) -> list[str | Table]:
        """What is said of them.

        Args:
            workers, fitting: jobs that would run beside each other, and how many of them fit.
            asked: whether a user has said how many.
        """
        found = told(list(self.needs.values()), self.place)
        if fitting < workers:
            why = f"{workers} jobs at once may need more memory than {self.place.name} has"
            set_, done = f"warning: {why}: set {self.place.workers}={fitting}", f"{fitting} at once: {why}"
            found.append(set_ if asked else done)
        return [*found, *self.unknown]


def of_step(step: Step, precision: str, place: Place) -> Work | None:
    """What a step does, from its node and those it reads; None of a step without a model.

    Raises:
        PreflightError: the weights alone do not fit.
    """
    model = _base(step)
    if model is None or step.stage not in _WORKS:
        return None
    _check_weights(model, place)
    shape = functools.partial(_footprint, model, precision)
    light = functools.partial(_footprint, model, precision, "bf16") if model.pretrained else None
    tokens, predicted = _tokens(step), _new_tokens(step)
    work = Work(step.stage, shape(), adapted=light, tokens=tokens, predicted=predicted, batch_tokens=place.batch_tokens)
    found = _WORKS[step.stage](step, work)
    return None if found is None else _with_options(step, found)


def _with_options(step: Step, work: Work) -> Work:
    """Checkpointing where it is set, and one copy of the weights where adapters lie on them."""
    if isinstance(step.config, SftConfig | Recipe):
        work = replace(work, checkpointing=step.config.gradient_checkpointing)
    adapter = _input(step, "adapter")
    # A trained backbone is a copy in fp32; sft of a new model trains all its weights.
    if not isinstance(adapter, LoraConfig) or step.stage == "irl" or (step.stage == "sft" and work.adapted is None):
        return work
    light = work.adapted if adapter.dtype == "bfloat16" else None
    model = light() if light else work.model
    return replace(work, model=model, copies=min(1, work.copies), rank=adapter.rank if work.trained else None)


def _base(step: Step) -> ModelConfig | None:
    """The base model of a step."""
    model = step.inputs.get("model")
    if isinstance(model, ModelConfig):
        return model
    reference = step.inputs.get("reference")
    return _base(reference) if isinstance(reference, Step) else None


def _check_weights(model: ModelConfig, place: Place) -> None:
    """A new model may be asked for that is too large to be built even without numbers."""
    weights = NUMBER * 12 * model.layers * model.hidden_size**2
    if not model.pretrained and place.memory is not None and weights > place.memory:
        raise PreflightError(
            f"model.hidden_size={model.hidden_size} and model.layers={model.layers}: at least {gib(weights)} GiB of "
            f"memory, and there are {gib(place.memory)} GiB. Choose smaller ones."
        )


@functools.cache
def _footprint(model: ModelConfig, precision: str, weights: str = "fp32") -> Footprint:
    return footprint(architecture_of(model), precision=precision, weights=weights)  # type: ignore[arg-type]


def architecture_of(model: ModelConfig) -> transformers.PretrainedConfig:
    """The configuration of a model: of a new one, of a folder, or of the hub, of which only that is fetched.

    Raises:
        FootprintError: it cannot be read.
    """
    from irl_exp.policies.language_models import new_architecture

    if not model.pretrained:
        return new_architecture(model, vocab_size=model.vocabulary)
    try:
        return transformers.AutoConfig.from_pretrained(
            str(model.path or model.hub), revision=model.revision, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise FootprintError(f"the configuration of model={model.name} cannot be read") from error


def _input(step: Step, name: str) -> Node | None:
    """The node of a step that this one reads, or of one further up."""
    found = step.inputs.get(name)
    if isinstance(found, Step):
        return found.config
    above = (value for value in step.inputs.values() if isinstance(value, Step))
    return found or next((node for one in above if (node := _input(one, name))), None)


def _words(step: Step) -> int:
    data = cast(DataConfig, _input(step, "data"))
    return data.max_prompt_words


def _new_tokens(step: Step) -> int:
    """Tokens of the longest completion that a step writes or reads."""
    config = step.config
    if isinstance(config, SftConfig):
        return config.max_tokens
    if isinstance(config, WRITERS):
        return int(config.max_new_tokens)
    demonstrations = _input(step, "demonstrations")
    return demonstrations.max_new_tokens if isinstance(demonstrations, DemonstrationsConfig) else 0


def _tokens(step: Step) -> int:
    prompt = 0 if isinstance(step.config, SftConfig) else round(WORD * _words(step))
    return prompt + _new_tokens(step)


def _sft(step: Step, work: Work) -> Work | None:
    config, model = cast(SftConfig, step.config), step.inputs.get("model")
    if isinstance(model, ModelConfig) and model.tuned:
        return replace(work, read=HELD_OUT)
    micro = f"{'expert' if step.stage == 'further' else step.stage}.micro_batch_size"
    return replace(work, trained=True, rows=config.micro_batch_size or config.batch_size, micro=micro)


def _rl(step: Step, work: Work) -> Work:
    """RLOO and GRPO write with the policy and keep the reference beside it; the others train on what it wrote."""
    config = cast(Recipe, step.config)
    micro = config.micro_batch_size or config.batch_size
    name = f"{step.stage}.micro_batch_size"
    work = replace(work, trained=True, written=config.batch_size, micro=name, beside=_judge(step))
    if isinstance(config, PolicyOptimizationConfig):
        copies = 2  # and the reference
        read = config.batch_size if config.algorithm == "grpo" or step.stage == "refinetune" else 0
        return replace(work, rows=micro, fewest=config.generations, copies=copies, read=read, entropy=True)
    sides = 2 if isinstance(config, DpoConfig) else 1
    return replace(work, rows=sides * micro // config.generations, fewest=sides)


def _judge(step: Step) -> int:
    """Bytes of the models of R*; what is no model is small."""
    reward = step.inputs.get("reward")
    config = reward.config if isinstance(reward, Step) else None
    parts = config.parts.values() if isinstance(config, WeightedConfig) else [config]
    return sum(_classifier(part) for part in parts if isinstance(part, SequenceClassifierConfig))


@functools.cache
def _classifier(config: SequenceClassifierConfig) -> int:
    """Bytes of a classifier with one batch in it."""
    shape = footprint(
        transformers.AutoConfig.from_pretrained(
            str(config.path or config.hub), revision=config.revision, trust_remote_code=False
        )
    )
    return round(shape.weights + READ_AT_ONCE["cpu"] * shape.passing)


def _demonstrations(step: Step, work: Work) -> Work:
    config: Any = step.config
    expert = step.inputs.get("expert")
    if isinstance(expert, TextsExpert):
        return replace(work, read=2 * _rows(step))
    data = cast(DataConfig, _input(step, "data"))
    if step.stage in ("baseline", "demonstrations"):
        prompts = data.fit_prompts + data.select_prompts + data.test_prompts
    else:
        prompts = data.test_prompts if isinstance(config, EvaluateConfig) else config.prompts
    written, together = config.completions_per_prompt * prompts, config.batch_size
    if step.stage == "baseline":
        return replace(work, written=written, together=together, batch="demonstrations.batch_size")
    name = f"{step.stage.removesuffix('_refinetuned')}.batch_size"
    return replace(work, copies=2, written=written, together=together, read=written, batch=name)


def _judged(step: Step, work: Work) -> Work:
    """A policy writes, the reference reads, and R* judges."""
    return replace(_demonstrations(step, work), copies=2, beside=_judge(step))


def _read_states(step: Step, work: Work) -> Work:
    config = cast(FeaturesConfig, step.config)
    copies = 2 if config.random else 1
    return replace(
        work,
        copies=copies,
        read=_rows(step),
        read_layers=any(part.layers != (-1,) for part in config.states.values()),
        features=(_rows(step), _columns(config, work.model)),
    )


def _rows(step: Step) -> int:
    """Completions of the demonstrations."""
    data = cast(DataConfig, _input(step, "data"))
    demonstrations = step.config if step.stage == "demonstrations" else _input(step, "demonstrations")
    each = demonstrations.completions_per_prompt if isinstance(demonstrations, DemonstrationsConfig) else 1
    return 2 * each * (data.fit_prompts + data.select_prompts + data.test_prompts)


def _columns(config: FeaturesConfig, model: Footprint) -> int:
    states = sum(len(part.layers) * model.width for part in config.states.values())
    ngrams = config.ngram.max_features if config.ngram else 0
    return states + ngrams + sum(part is not None for part in (config.sentiment, config.length))


def _fit(step: Step, work: Work) -> Work | None:
    config = step.config
    if isinstance(config, MarginConfig) and not isinstance(config.backbone, FrozenBackbone):
        micro = config.backbone.micro_batch_size or config.backbone.batch_size
        trained = replace(work, trained=True, rows=2 * micro, fewest=2, predicted=0, read=_rows(step))
        return replace(trained, adapted=None)
    frozen = step.inputs.get("features")
    if not isinstance(frozen, Step):
        return None
    columns = _columns(cast(FeaturesConfig, frozen.config), work.model)
    linear = cast(MarginConfig, config)
    ridges, components = len(linear.ridges), linear.components
    return replace(work, copies=0, features=(_rows(step), columns), ridges=ridges, components=components)


_WORKS: Mapping[str, Callable[[Step, Work], Work | None]] = {
    "sft": _sft,
    "further": _sft,
    "rlhf": _rl,
    "baseline": _demonstrations,
    "demonstrations": _demonstrations,
    "features": _read_states,
    "irl": _fit,
    "refinetune": _rl,
    "evaluate": _judged,
    "benchmark": _judged,
    "benchmark_refinetuned": _judged,
}
"""The stages that have a model of the size of the policy; others read texts and features."""
