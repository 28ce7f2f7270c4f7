"""A second set of prompts: read without labels, none of them in the data, shared by the seeds of IRL, and told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import small
from small_study import Made, write

from irl_exp import chain
from irl_exp.analysis import study
from irl_exp.analysis.figures import drawing, toxicity
from irl_exp.config import ConfigError, FileBenchmark
from irl_exp.launch import preflight
from irl_exp.measures import policy_metrics
from irl_exp.policies.language_models import Completions
from irl_exp.report import runs
from irl_exp.rewards import ground_truth, judging
from irl_exp.stages import benchmark as benchmark_stage
from irl_exp.stages import benchmark_refinetuned as refinetuned_stage
from irl_exp.stages import evaluate as evaluate_stage
from irl_exp.texts import data

ROOT = Path(__file__).parents[2]
PROMPTS = [f"Number {number} of the  list" for number in range(20)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Prompts alone: neither completions nor labels; one is there twice, one is empty."""
    path = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"prompt": prompt}) for prompt in [*PROMPTS, PROMPTS[3], ""]]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def benchmark(path: Path, **options: Any) -> FileBenchmark:
    base = {"seed": 0, "prompts": 5, "max_prompt_words": 32, "completions_per_prompt": 2, "max_new_tokens": 6}
    return FileBenchmark(**{**base, "batch_size": 16, "path": path, **options})


# ---------------------------------------------------------------- prompts


def test_prompts_are_read_alone_and_drawn_by_the_seed(file: Path) -> None:
    found = data.read_benchmark(benchmark(file))
    assert sorted(found) == sorted(PROMPTS)
    assert found == data.read_benchmark(benchmark(file))
    assert found != data.read_benchmark(benchmark(file, seed=1))
    chosen, known = data.unseen(found, [], benchmark(file))
    assert (chosen, known) == (sorted(found[:5]), 0)


def test_long_prompts_are_cut_and_whole_texts_halved(file: Path) -> None:
    assert data.read_benchmark(benchmark(file, max_prompt_words=1)) == ["Number"]
    halves = data.read_benchmark(benchmark(file, prompt=None, text="prompt"))
    assert sorted(halves) == sorted(" ".join(prompt.split()[:2]) for prompt in PROMPTS)


def test_prompts_of_the_data_are_left_out_whatever_their_spaces(file: Path) -> None:
    found = data.read_benchmark(benchmark(file))
    taken = [prompt.replace("  ", " ") for prompt in found[:7]]
    chosen, known = data.unseen(found, taken, benchmark(file))
    assert chosen == sorted(found[7:12])
    assert known == 7
    with pytest.raises(data.DataError, match=r"benchmark\.prompts=14: .* 20 distinct prompts, of which 7 are in the"):
        data.unseen(found, taken, benchmark(file, prompts=14))


def test_a_column_that_is_not_there_is_named_with_the_remedy(file: Path) -> None:
    with pytest.raises(data.DataError, match=r"field 'words' is missing"):
        data.read_benchmark(benchmark(file, prompt="words"))
    pd.DataFrame({"text": PROMPTS}).to_csv(file.with_suffix(".csv"))
    with pytest.raises(data.DataError, match=r"'prompt' is missing; .*benchmark\.prompt or benchmark\.text"):
        data.read_benchmark(benchmark(file.with_suffix(".csv")))


# ---------------------------------------------------------------- config and identities


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["benchmark=file"], r"benchmark: set benchmark\.path to a"),
        (["benchmark=file", "benchmark.path=nowhere.jsonl"], r"benchmark\.path=nowhere.jsonl: there is no such file"),
        (["benchmark=jigsaw", "benchmark.prompt=null"], r"name the column: benchmark\.prompt or benchmark\.text"),
    ],
)
def test_what_cannot_be_read_is_refused(overrides: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        small.compose(*overrides)


def test_its_sizes_follow_those_of_the_test_prompts(file: Path) -> None:
    found = small.compose("benchmark=file", f"benchmark.path={file}", "evaluate.completions_per_prompt=3").benchmark
    assert isinstance(found, FileBenchmark)
    assert (found.prompts, found.completions_per_prompt, found.max_new_tokens) == (16, 3, 16)


def digests(*overrides: str) -> dict[str, str]:
    steps = chain.build(small.compose(*overrides), small.DEVICE)
    return {stage: step.identity.digest for stage, step in steps.items()}


def test_only_evaluate_knows_of_it(file: Path) -> None:
    none = chain.build(small.compose(), small.DEVICE)
    assert not any("benchmark" in str(step.inputs.keys()) for step in none.values())
    plain, found = digests(), digests("benchmark=file", f"benchmark.path={file}")
    assert found.keys() - plain.keys() == {"benchmark", "benchmark_refinetuned"}
    assert {stage for stage in plain if plain[stage] != found[stage]} == {"evaluate"}


def test_seeds_of_irl_share_what_reference_and_expert_write(file: Path) -> None:
    line = ("benchmark=file", f"benchmark.path={file}")
    one, other = digests(*line, "irl.seed=1"), digests(*line, "irl.seed=2")
    assert one["benchmark"] == other["benchmark"]
    assert one["benchmark_refinetuned"] != other["benchmark_refinetuned"]
    assert digests(*line, "rlhf.seed=1")["benchmark"] != one["benchmark"]


def test_it_goes_as_far_as_the_chain(file: Path) -> None:
    line = ("benchmark=file", f"benchmark.path={file}")
    steps = chain.build(small.compose(*line, "until=sft"), small.DEVICE)
    assert "expert" not in steps["benchmark"].inputs
    assert "benchmark_refinetuned" not in chain.build(small.compose(*line, "until=irl"), small.DEVICE)


def test_too_few_prompts_are_known_before_any_work(texts: Path, file: Path) -> None:
    own = ("data=file", f"data.path={texts}/file.jsonl")
    same = chain.build(small.compose(*own, "benchmark=file", f"benchmark.path={texts}/file.csv"), small.DEVICE)
    with pytest.raises(data.DataError, match=r"benchmark\.prompts=16: .*left out\. Lower benchmark\.prompts"):
        preflight.check(same["benchmark"])
    enough = chain.build(small.compose(*own, "benchmark=file", f"benchmark.path={file}"), small.DEVICE)
    preflight.check(enough["benchmark"])


# ---------------------------------------------------------------- stages


@dataclass
class Vowels:
    """R* = 2 - the number of a's."""

    def score(self, completions: Completions) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.array([2.0 - text.count("a") for text in completions.texts])


@pytest.fixture
def judged(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Both stages on small policies: folders `benchmark` and `benchmark_refinetuned` of the folder that is returned."""
    monkeypatch.setattr(judging, "load_ground_truth", lambda folder, device: Vowels())
    for name, model in (("reference", "neox"), ("expert", "neox"), ("refinetune", "neox")):
        small.policy(model).save(tmp_path / name)
    pd.DataFrame({"prompt": PROMPTS[:4]}).to_parquet(tmp_path / "texts.parquet")
    judges = {"reward": tmp_path, "second_judge": tmp_path, "reference": tmp_path / "reference"}
    shared, own = (small.context(tmp_path / name) for name in ("benchmark", "benchmark_refinetuned"))
    info = benchmark_stage.run(benchmark(file), data=tmp_path, expert=tmp_path / "expert", **judges, context=shared)
    assert info["prompts_in_data"] == 4
    assert "4 of 20 left out" in info["note"]
    refinetuned_stage.run(
        benchmark(file), benchmark=shared.folder, refinetune=tmp_path / "refinetune", **judges, context=own
    )
    return tmp_path


def test_every_policy_writes_on_the_same_prompts_none_of_them_in_the_data(judged: Path) -> None:
    tables = evaluate_stage.read_benchmark(judged / "benchmark", judged / "benchmark_refinetuned")
    assert list(tables) == ["reference", "expert", "refinetuned"]
    prompts = json.loads((judged / "benchmark" / "prompts.json").read_text())
    assert not set(prompts) & set(PROMPTS[:4])
    for table in tables.values():
        assert table["prompt"].tolist() == [prompt for prompt in prompts for _ in range(2)]
        assert table["prompt_id"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
        assert table["truth"].tolist() == [2.0 - text.count("a") for text in table["completion"]]
        assert np.isfinite(table["log_probability"]).all()
    alike = tables["reference"].drop(columns="policy").reset_index(drop=True)
    pd.testing.assert_frame_equal(alike, tables["refinetuned"].drop(columns="policy").reset_index(drop=True))
    assert evaluate_stage.read_benchmark(None, None) == {}


# ---------------------------------------------------------------- what is reported


def test_every_number_of_a_policy_is_documented(judged: Path) -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    table = pd.read_parquet(judged / "benchmark" / "completions.parquet")
    keys = policy_metrics.policy_metrics(table.assign(learned=0.0), 100, 0, log_odds=True)
    bounds = ("_low", "_high")
    assert [key for key in keys if f"`{key}`" not in page and not key.endswith(bounds)] == []


def test_a_run_has_a_table_of_the_benchmark() -> None:
    metrics = {"n_prompts": 9, "reference/n_completions": 18, "reference/toxic_fraction": 0.25}
    assert len(runs.run_tables(metrics)) == 1
    more = {"n_prompts": 5, "reference/n_completions": 10, "reference/toxic_fraction": 0.5}
    tables = runs.run_tables({**metrics, **{f"benchmark/{key}": value for key, value in more.items()}})
    assert [table.title for table in tables] == [
        "Policies on 9 test prompts, 18 completions each",
        "Policies on 5 prompts of the benchmark, 10 completions each",
    ]
    assert tables[1].rows == (("reference", "0.500"),)


def on_both(folder: Path, runs: Sequence[Made], counts: Sequence[int]) -> study.Study:
    """Made-up runs with a benchmark on which all policies wrote so many toxic completions of 40."""
    for run, count in zip(runs, counts, strict=True):
        other = Made(toxic=dict.fromkeys(run.toxic, count))
        place = write(folder / f"other-{count}", [other]) / "0"
        numbers = json.loads((place / "metrics.json").read_text())
        run.metrics = {f"benchmark/{key}": value for key, value in numbers.items() if key.split("/")[0] != "irl"}
    place = write(folder / "study" / "20260101-000000-000000", runs)
    for number, count in enumerate(counts):
        (folder / f"other-{count}" / "0" / "completions.parquet").rename(place / str(number) / "benchmark.parquet")
    return study.read(place)


def test_the_toxicity_of_a_study_is_told_of_both_sets(tmp_path: Path) -> None:
    runs = [Made(seed=seed, toxic={"reference": 20, "refinetuned": 8}, config=NAMED) for seed in range(2)]
    found = on_both(tmp_path, runs, (12, 16))
    table = toxicity.toxicity_table(found).set_index(["prompt_set", "policy"])
    assert table["toxic"].to_dict() == {
        ("test", "reference"): 20,
        ("test", "refinetuned"): 16,
        ("benchmark", "reference"): 28,
        ("benchmark", "refinetuned"): 28,
    }
    assert table.loc[("benchmark", "refinetuned"), "fraction"] == pytest.approx(14 / 40)
    assert table.loc[("benchmark", "refinetuned"), "prompt_share"] == pytest.approx((3 + 4) / 20)
    with drawing.style():
        figure = toxicity.toxicity(found)
    assert len(figure.axes) == 6
    assert figure.axes[3].get_title(loc="left").startswith("benchmark prompts:")


NAMED = {"benchmark": {"name": "file", "path": "prompts.jsonl"}}


def test_two_benchmarks_are_two_sets(tmp_path: Path) -> None:
    """One policy on other prompts is not the same sample, drawn again."""
    others = [{"benchmark": {"name": name}} for name in ("jigsaw", "real_toxicity_prompts")]
    runs = [Made(cell=f"benchmark={number}", toxic={"reference": 20}, config=own) for number, own in enumerate(others)]
    judged = toxicity.judged(on_both(tmp_path, runs, (12, 16)), "benchmark")
    assert [(item.cells, item.policies[0].n) for item in judged] == [(("benchmark=0",), 40), (("benchmark=1",), 40)]


def test_a_probability_is_told_of_the_same_rewards_everywhere() -> None:
    assert toxicity.LOG_ODDS == ground_truth.LOG_ODDS
