"""What a launch says of memory before it starts, and what it refuses with which remedy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import small
from omegaconf import OmegaConf

from irl_exp import chain
from irl_exp.launch import memory, planner
from irl_exp.launch.jobs import PlannedJob
from irl_exp.launch.memory import GIB, Need, Place, Planned, Work
from irl_exp.launch.models import PreflightError
from irl_exp.launch.tasks import declared
from irl_exp.machinery import runtime
from irl_exp.policies.footprint import Footprint
from irl_exp.report.tables import Table

SHAPE = Footprint(
    parameters=10**9,
    layers=16,
    width=2048,
    vocabulary=50_000,
    adapted=10**6,
    inputs=5 * 10**5,
    kept=2e6,
    passing=1e5,
    state=8192,
    cache=3e5,
    cast=0,
    weight=4,
)
LIGHT = replace(SHAPE, weight=2, kept=1e6, passing=5e4, state=4096)
TRAINING = Work(
    "rlhf",
    SHAPE,
    adapted=lambda: LIGHT,
    tokens=200,
    predicted=100,
    copies=2,
    trained=True,
    rows=64,
    fewest=4,
    written=64,
    micro="rlhf.micro_batch_size",
)
READING = Work(
    "demonstrations", SHAPE, tokens=200, predicted=100, written=512, together=512, batch="demonstrations.batch_size"
)
CARD = Place("cuda", 1, 80 * GIB, name="the GPU")


def size(work: Work, place: Place = CARD) -> int:
    return memory.need(work, place).total


def test_all_weights_take_16_bytes_a_parameter_with_gradients_and_optimiser() -> None:
    small_texts = replace(TRAINING, copies=1, rows=16, tokens=2, predicted=1)
    found = memory.need(small_texts, CARD).parts
    assert found["weights"] + found["gradients"] + found["optimiser"] == 16 * SHAPE.parameters


def test_adapters_have_one_copy_of_the_weights_and_train_little() -> None:
    found = memory.need(replace(TRAINING, model=LIGHT, rank=8, copies=1), CARD).parts
    assert found["optimiser"] == 2 * 4 * 8 * LIGHT.adapted
    assert found["weights"] == 2 * LIGHT.parameters + 2 * LIGHT.head + 4 * 8 * LIGHT.adapted


def test_vllm_has_the_weights_once_more_and_a_cache_of_its_own() -> None:
    place = replace(CARD, engine=4 * GIB)
    more = {
        name: memory.need(replace(READING, model=model), place).parts["weights"]
        - memory.need(replace(READING, model=model), CARD).parts["weights"]
        for name, model in (("fp32", SHAPE), ("bf16", replace(SHAPE, cast=1)), ("adapters", LIGHT))
    }
    assert more == {"fp32": SHAPE.weights, "bf16": 2 * SHAPE.parameters, "adapters": LIGHT.weights}
    assert memory.need(READING, place).parts["cache"] == 4 * GIB


@pytest.mark.parametrize("name", ["rows", "tokens", "copies"])
def test_more_of_anything_takes_more(name: str) -> None:
    sizes = [size(replace(TRAINING, **{name: factor * getattr(TRAINING, name)})) for factor in (1, 2, 4)]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("name", ["together", "tokens"])
def test_more_to_write_takes_more(name: str) -> None:
    sizes = [size(replace(READING, **{name: value})) for value in (32, 64, 128)]
    assert sizes == sorted(set(sizes))


def test_checkpointing_takes_less_and_a_gpu_no_libraries() -> None:
    assert size(replace(TRAINING, checkpointing=True)) < size(TRAINING)
    assert memory.need(TRAINING, CARD).parts["process"] == 0 < memory.need(TRAINING, Place("cpu", 1)).parts["process"]


def test_what_fits_is_not_refused_and_what_nobody_knows_neither() -> None:
    assert memory.refusal(memory.need(READING, CARD), CARD) == ""
    assert memory.refusal(memory.need(TRAINING, Place("cuda", 1)), Place("cuda", 1)) == ""


def remedies(work: Work, gibibytes: float, kind: str = "cuda") -> str:
    place = Place(kind, 1, round(gibibytes * GIB))
    return memory.refusal(memory.need(work, place), place).partition("What would make it fit: ")[2]


def test_a_refusal_names_two_options_that_make_it_fit() -> None:
    place = replace(CARD, memory=30 * GIB)
    said = memory.refusal(memory.need(TRAINING, place), place)
    assert said.startswith("rlhf: needs about ")
    assert "weights 7.5" in said
    assert "the GPU has 30.0 GiB" in said
    assert said.endswith("What would make it fit: adapter=lora, or rlhf.gradient_checkpointing=true.")
    for smaller in (replace(TRAINING, model=LIGHT, rank=memory.RANK, copies=1), replace(TRAINING, checkpointing=True)):
        assert size(smaller) <= 30 * GIB < size(TRAINING)


def test_a_batch_is_split_as_little_as_is_needed() -> None:
    work = replace(TRAINING, adapted=None)
    assert remedies(work, 40).startswith("rlhf.gradient_checkpointing=true, or rlhf.micro_batch_size=32")
    assert size(replace(work, rows=32)) <= 40 * GIB < size(work)


def test_where_one_is_not_enough_two_together_are_named() -> None:
    said = remedies(TRAINING, 8)
    assert said.startswith("adapter=lora and rlhf.micro_batch_size=8 together, or a model of about ")
    adapted = replace(TRAINING, model=LIGHT, rank=memory.RANK, copies=1)
    assert size(replace(adapted, rows=8)) <= 8 * GIB < min(size(adapted), size(replace(TRAINING, rows=4)))


def test_where_nothing_is_enough_a_smaller_model_is() -> None:
    assert remedies(TRAINING, 1).endswith(" M parameters at most; no two of the options are enough.")


def test_what_is_only_read_is_written_in_smaller_batches() -> None:
    assert remedies(READING, 20).startswith("demonstrations.batch_size=256, or a model of about ")


def test_a_new_model_has_nothing_to_adapt() -> None:
    assert "adapter=lora" not in remedies(replace(TRAINING, adapted=None), 8)


def test_one_line_where_all_fits_easily() -> None:
    needs = [memory.need(READING, Place("cpu", 1))]
    (line,) = memory.told(needs, Place("cpu", 1, 10**15))
    assert isinstance(line, str)
    assert line.startswith("memory: a job needs at most about ")
    assert line.endswith(f" of {10**15 / GIB:.0f} GiB (demonstrations)")
    assert memory.told([], CARD) == []


def test_a_table_where_it_matters_has_the_largest_of_each_stage() -> None:
    place = replace(CARD, memory=60 * GIB)
    small_one, large = (memory.need(replace(READING, together=size), place) for size in (64, 512))
    _, table = memory.told([large, small_one, memory.need(TRAINING, place)], place)
    assert isinstance(table, Table)
    assert [row[0] for row in table.rows] == ["demonstrations", "rlhf"]
    assert table.columns == ("stage", "weights", "optimiser", "gradients", "activations", "logits", "cache", "together")
    assert table.rows[0][-1] == memory.gib(large.total)


def needs(*sizes: int) -> dict[str, Need]:
    return {str(size): Need(READING, {"weights": size}) for size in sizes}


@pytest.mark.parametrize(
    ("jobs", "workers", "expected"),
    [
        ([needs(4), needs(5), needs(6)], 3, 1),
        ([needs(4), needs(5), needs(1)], 3, 2),
        ([needs(1), needs(2), needs(3)], 3, 3),
        # What two jobs share is computed once.
        ([needs(6, 1), needs(6, 2)], 2, 2),
        ([needs(20)], 4, 1),
        ([needs(2)], 4, 4),
        ([], 4, 4),
    ],
)
def test_jobs_at_once_are_as_many_as_fit(jobs: list[dict[str, Need]], workers: int, expected: int) -> None:
    assert memory.at_once(jobs, workers, 9) == expected
    assert memory.at_once(jobs, workers, None) == workers


def planned(place: Place, *overrides: str) -> Planned:
    found = Planned(place)
    for step in chain.build(small.compose(*overrides), small.DEVICE).values():
        found.add(step, "fp32")
    return found


def test_options_of_the_config_reach_the_prediction(small_policy: Path) -> None:
    def parts(*options: str) -> dict[str, dict[str, int]]:
        found = planned(Place("cpu", 2), f"model.path={small_policy}", "rlhf.batch_size=64", *options)
        return {one.work.stage: dict(one.parts) for one in found.needs.values()}

    whole, adapted = parts(), parts("adapter=lora")
    for stage in ("rlhf", "demonstrations", "evaluate"):
        assert adapted[stage]["weights"] < whole[stage]["weights"], stage
    assert adapted["rlhf"]["optimiser"] < whole["rlhf"]["optimiser"]
    for option in ("rlhf.gradient_checkpointing=true", "rlhf.micro_batch_size=8"):
        assert parts(option)["rlhf"]["activations"] < whole["rlhf"]["activations"]


def test_the_default_run_fits_and_every_stage_with_a_model_is_counted() -> None:
    found = planned(Place("cpu", 2, 24 * GIB), "scale=default")
    (line,) = found.told(1, 1, asked=False)
    assert isinstance(line, str)
    assert "of 24.0 GiB" in line
    stages = {one.work.stage for one in found.needs.values()}
    assert stages == {"sft", "rlhf", "baseline", "demonstrations", "features", "irl", "refinetune", "evaluate"}
    assert all(GIB / 2 < one.total < 2 * GIB for one in found.needs.values())


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.hidden_size=1000000", r"model\.hidden_size=1000000 and model\.layers=\d+: at least .* GiB of memory"),
        ("model.layers=1000000000", r"model\.hidden_size=\d+ and model\.layers=1000000000: at least .* GiB of memory"),
        ("rlhf.batch_size=1000000000", r"rlhf: needs about .* What would make it fit: rlhf\.micro_batch_size="),
        ("irl/backbone=full irl.backbone.batch_size=50000000", r"irl: needs about "),
    ],
)
def test_what_no_machine_holds_is_refused(override: str, told: str) -> None:
    with pytest.raises(PreflightError, match=told):
        planned(Place("cpu", 2, 24 * GIB), *override.split())


def test_a_model_that_cannot_be_predicted_is_said_and_not_refused(tmp_path: Path, small_policy: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    (tmp_path / "model.safetensors").touch()
    found = planned(Place("cpu", 1, GIB), f"model.path={tmp_path}")
    assert found.needs == {}
    assert all(str(line).startswith("memory: not known, ") for line in found.told(1, 1, asked=False))


# ------------------------------------------------------------------------------------------ what there is


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/a/b\n", {"a/b/memory.max": "300", "a/memory.max": "200", "memory.max": "max"}, {200, 300}),
        ("4:memory:/job\n1:cpu:/\n", {"memory/job/memory.limit_in_bytes": "77"}, {77}),
        # In a container the path is that of the host, and only the top is there.
        ("0::/kubepods/pod1\n", {"memory.max": "500"}, {500}),
        ("0::/\n", {}, set()),
    ],
)
def test_limits_of_control_groups_are_found(
    groups: str, files: dict[str, str], expected: set[int], tmp_path: Path
) -> None:
    own = tmp_path / "cgroup"
    own.write_text(groups)
    for name, content in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert set(runtime._limits(own, tmp_path / "groups")) == expected


def test_the_machine_has_memory_and_says_nothing_of_another() -> None:
    assert GIB < (runtime.memory(small.DEVICE) or 0) < 10**15
    assert runtime.memory(runtime.declared_device("cuda", "bf16")) is None


# ------------------------------------------------------------------------------------------ of a launch


@pytest.mark.parametrize(
    ("options", "size", "named"),
    [
        ((), None, "a node"),
        (("executor.memory=64",), 64 * GIB, "a node"),
        # What a GPU holds is not what its node holds.
        (("executor.memory=64", "executor.gpus=2", "device=cuda", "precision=fp32"), None, "a GPU"),
        (("executor.gpu_memory=80", "executor.gpus=2", "device=cuda", "precision=fp32"), 80 * GIB, "a GPU"),
    ],
)
def test_of_nodes_elsewhere_the_memory_is_what_the_executor_says(
    options: tuple[str, ...], size: int | None, named: str
) -> None:
    config = small.compose("executor=slurm", *options)
    place = planner._place(config, declared(config))
    assert (place.memory, place.name) == (size, named)


def test_what_no_gpu_of_the_nodes_holds_is_refused_where_jobs_are_submitted() -> None:
    options = ("executor=slurm", "executor.gpus=1", "device=cuda", "precision=fp32", "executor.gpu_memory=24")
    config = small.compose(*options)
    place = planner._place(config, declared(config))
    with pytest.raises(PreflightError, match=r"rlhf: needs about .* and a GPU has 24\.0 GiB\. .*: rlhf\.micro_batch"):
        planned(place, "rlhf.batch_size=1000000")


@pytest.mark.parametrize(
    ("options", "workers", "told"),
    [
        ((), 2, ["2 at once: 4 jobs at once may need more memory than this machine has"]),
        (
            ("workers=4",),
            4,
            ["warning: 4 jobs at once may need more memory than this machine has: set workers=2"],
        ),
        (("workers=2",), 2, []),
    ],
)
def test_as_many_jobs_at_once_as_fit_unless_a_user_says_how_many(
    monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], workers: int, told: list[str]
) -> None:
    monkeypatch.setattr(runtime, "cores", lambda: 4)
    jobs = [
        PlannedJob(number, "", Path(), OmegaConf.create(), config, chain.build(config, small.DEVICE))
        for number in range(6)
        for config in [small.compose(f"rlhf.seed={number}", "until=irl", *options)]
    ]
    found = Planned(Place("cpu", 1, 10**15))
    for job in jobs:
        for step in job.steps.values():
            found.add(step, "fp32")
    largest = max(one.total for one in found.needs.values())
    found.place = replace(found.place, memory=2 * largest)
    count, lines = planner._beside(jobs, len(jobs), replace(small.DEVICE, threads=1), found)
    assert (count, [line for line in lines if "at once" in str(line)]) == (workers, told)
