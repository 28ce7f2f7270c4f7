"""The report of a study: what is read, computed and written, and what is said where something is missing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import threadpoolctl
from conftest import Launched

from irl_exp import determined
from irl_exp.analysis import __main__ as command
from irl_exp.analysis import html, page, report, spread, statistics, study, summary
from irl_exp.analysis.study import NotComputed, StudyError
from irl_exp.irl import contrast
from irl_exp.report import names

JOBS = ("0", "1", "2")


@pytest.fixture
def copied(three_seeds: Launched, tmp_path: Path) -> Path:
    """A launch of three seeds that a test may damage, with its store beside it."""
    shutil.copytree(three_seeds.cwd / "multirun" / "store", tmp_path / "multirun" / "store")
    ignore = shutil.ignore_patterns("wandb", "report")
    return Path(shutil.copytree(three_seeds.folder, tmp_path / "multirun" / "seeds" / "20260101", ignore=ignore))


@pytest.fixture
def few_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of the page that do not look at each figure: all of them take seconds."""
    kept = ("distribution", "triangle", "distance_matrix", "left_open")
    for figures in ("OF_SUMMARY", "OF_STUDY"):
        own = getattr(report, figures)
        monkeypatch.setattr(report, figures, {name: own[name] for name in kept if name in own})


def change(path: Path, **values: Any) -> None:
    """Put values into a JSON file; a key may be dotted."""
    data = json.loads(path.read_text(encoding="utf-8"))
    for dotted, value in values.items():
        *parents, key = dotted.split("__")
        node = data
        for parent in parents:
            node = node[parent]
        node[key] = value
    path.write_text(json.dumps(data), encoding="utf-8")


# ------------------------------------------------------------------------------------------------ what is read


def test_a_launch_is_read_as_its_runs_wrote_it(three_seeds: Launched) -> None:
    found = study.read(three_seeds.folder)
    assert [run.number for run in found.runs] == [0, 1, 2]
    assert [dict(run.metrics) for run in found.runs] == [three_seeds.metrics(job) for job in range(3)]
    assert (found.name, found.n_jobs, found.lost, found.notes) == ("seeds", 3, (), ())
    assert found.varying_seeds == ["irl.seed"]
    assert [found.seed_of(run) for run in found.runs] == [(0,), (1,), (2,)]
    assert list(found.cells) == ["default"]
    assert "scale=tiny" in found.shared
    assert found.command.endswith("irl.seed=0,1,2 report=true")
    assert found.values("irl/auroc") == [three_seeds.metrics(job)["irl/auroc"] for job in range(3)]


def test_curves_are_those_of_metrics_jsonl(three_seeds: Launched) -> None:
    curves = study.read(three_seeds.folder).curves
    assert set(curves) == {"sft", "rlhf", "irl", "refinetune", "evaluate"}
    rows = [json.loads(line) for line in (three_seeds.folder / "1" / "metrics.jsonl").read_text().splitlines()]
    wanted = [row["irl/select_loss"] for row in rows if "irl/step" in row]
    mine = curves["irl"][curves["irl"]["run"] == 1]
    assert mine["select_loss"].tolist() == wanted
    assert mine["step"].tolist() == list(range(1, len(wanted) + 1))


def test_rewards_of_all_runs_are_as_the_method_left_them(three_seeds: Launched) -> None:
    found = study.read(three_seeds.folder)
    frame = found.rewards
    assert frame is not None
    for run in found.runs:
        folder = found.artifact(run, "irl")
        demos = found.artifact(run, "demonstrations")
        assert folder is not None
        assert demos is not None
        part = pd.read_parquet(demos / "demonstrations.parquet")
        scores = pd.read_parquet(folder / "scores.parquet")["score"]
        wanted = scores[(part["part"] == "test") & (part["policy"] == "baseline")]
        np.testing.assert_allclose(frame[run.number], wanted, rtol=1e-12, atol=1e-12)
        assert set(frame["policy"]) == {"reference"}
    civil = frame["truth"] >= 0
    assert civil.sum() == found.runs[0].metrics["irl/n_civil"]


def test_the_last_epochs_of_the_curve_are_the_reward_where_no_earlier_one_was_chosen(three_seeds: Launched) -> None:
    found = study.read(three_seeds.folder)
    curve = found.curves["evaluate"]
    for run in found.runs:
        folder = found.artifact(run, "irl")
        assert folder is not None
        best = json.loads((folder / "manifest.json").read_text())["info"]["best_epoch"]
        row = curve[(curve["run"] == run.number) & (curve["step"] == best)].iloc[0]
        for key in ("auroc", "accuracy_at_zero", "f1_at_zero", "pearson", "spearman", "kendall"):
            assert row[key] == pytest.approx(run.metrics[f"irl/{key}"], abs=1e-6), key


def test_the_folder_of_a_study_stands_for_its_newest_launch_with_results(copied: Path) -> None:
    newer = copied.with_name("20260102")
    (newer / "0" / ".hydra").mkdir(parents=True)
    older = copied.with_name("20250101")
    shutil.copytree(copied, older)
    found = study.read(copied.parent)
    assert found.folder == copied
    assert any("1 newer launch(es) of this study have no result yet" in note for note in found.notes)
    assert any("1 older launch(es)" in note for note in found.notes)


def test_one_run_is_a_study_of_one(copied: Path) -> None:
    found = study.read(copied / "1")
    assert [run.number for run in found.runs] == [1]
    assert any("One run: there is no spread" in note for note in html.notes(found))


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("nowhere", "no such folder"),
        (".", "no study, as no folder in it has runs of this program. It holds the studies seeds: name one"),
        ("store", "no study"),
    ],
)
def test_a_folder_that_is_no_study_says_so(copied: Path, place: str, told: str) -> None:
    with pytest.raises(StudyError, match=re.escape(told)):
        study.read(copied.parents[1] / place)


def test_half_written_runs_are_listed_and_in_no_number(copied: Path) -> None:
    (copied / "0" / "metrics.json").unlink()
    (copied / "1" / "metrics.json").write_text('{"irl/auroc": 0.5, "irl/e')
    found = study.read(copied)
    assert [run.number for run in found.runs] == [2]
    assert [(lost.number, lost.reason[:24]) for lost in found.lost] == [
        (0, "no metrics.json: interru"),
        (1, "metrics.json cannot be r"),
    ]
    assert summary.summarise(found).data["cells"]["default"]["irl/auroc"]["n"] == 1


def test_a_job_that_never_started_is_lost_too(copied: Path) -> None:
    shutil.rmtree(copied / "2")
    found = study.read(copied)
    assert [(lost.number, lost.reason) for lost in found.lost] == [(2, "no config.json: interrupted, or still running")]


def test_a_failed_job_is_lost_with_its_error(copied: Path) -> None:
    (copied / "2" / "metrics.json").unlink()
    (copied / "2" / "error.txt").write_text("Traceback ...\nValueError: the loss is nan\n")
    assert [lost.reason for lost in study.read(copied).lost] == ["failed: ValueError: the loss is nan"]


@pytest.mark.parametrize("value", ["NaN", "Infinity", '"0.9"', "null", "true"])
def test_what_is_no_finite_number_is_named(copied: Path, value: str) -> None:
    path = copied / "0" / "metrics.json"
    path.write_text(path.read_text().replace("{", f'{{"irl/odd": {value},', 1))
    (lost,) = study.read(copied).lost
    assert lost.number == 0
    assert re.search(r"irl/odd = .+, which is no finite number", lost.reason)


def test_no_run_with_a_result_is_an_error_that_says_why(copied: Path) -> None:
    for job in JOBS:
        (copied / job / "metrics.json").unlink()
    with pytest.raises(StudyError, match=r"none of its 3 runs has a result: 3 x no metrics\.json"):
        study.read(copied)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [("versions__torch", "1.0", "mixed torch"), ("code", "abc", "mixed code"), ("device_used", "cuda", "mixed device")],
)
def test_mixed_versions_are_told(copied: Path, key: str, value: str, told: str) -> None:
    change(copied / "1" / "config.json", **{key: value})
    assert any(note.startswith(told) and "(1 runs)" in note for note in study.read(copied).notes)


def test_runs_of_a_cell_that_differ_in_more_than_seeds_are_told(copied: Path) -> None:
    change(copied / "1" / "config.json", irl__epochs=77)
    (note,) = study.read(copied).notes
    assert note == "runs of the cell default differ in irl.epochs: do not read them as repetitions."


def test_a_curve_that_a_kill_has_cut_off_ends_there(copied: Path) -> None:
    path = copied / "0" / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    curves = study.read(copied).curves
    assert len(curves["sft"][curves["sft"]["run"] == 0]) > 0
    assert "evaluate" not in set(curves) or 0 not in set(curves["evaluate"]["run"])


@pytest.mark.parametrize("content", [None, b'{"sft/step": 0, "sft/lo', b"\xff\xfe\x00\n", b"3\n"])
def test_a_run_without_its_curves_is_told(copied: Path, content: bytes | None) -> None:
    path = copied / "1" / "metrics.jsonl"
    path.unlink() if content is None else path.write_bytes(content)
    found = study.read(copied)
    assert found.notes == ("metrics.jsonl of run 1 is missing, cut or unreadable: its curves are not shown whole.",)
    assert 1 not in set(found.curves["sft"]["run"])
    assert {0, 2} <= set(found.curves["sft"]["run"])


def test_seeds_that_go_together_are_one_source(copied: Path) -> None:
    for job, seed in zip(JOBS, (0, 1, 1), strict=True):
        change(copied / job / "config.json", demonstrations__seed=seed, irl__seed=seed)
    assert study.read(copied).varying_seeds == ["demonstrations.seed"]
    change(copied / "2" / "config.json", irl__seed=5)
    assert study.read(copied).varying_seeds == ["demonstrations.seed", "irl.seed"]


# -------------------------------------------------------------------------------------------- what is computed


def test_the_numbers_of_a_cell_are_those_of_its_runs(three_seeds: Launched) -> None:
    found = summary.summarise(study.read(three_seeds.folder)).data["cells"]["default"]["irl/epic"]
    values = [three_seeds.metrics(job)["irl/epic"] for job in range(3)]
    assert found["n"] == 3
    assert found["mean"] == found["typical"] == pytest.approx(np.mean(values))
    assert found["sd"] == pytest.approx(np.std(values, ddof=1))
    half = statistics.mean_t(values).high - np.mean(values)
    assert (found["mean_low"], found["mean_high"]) == pytest.approx((np.mean(values) - half, np.mean(values) + half))


def test_cells_are_compared_on_the_seeds_that_both_have(copied: Path) -> None:
    plan = json.loads((copied / "plan.json").read_text())["jobs"]
    for job in JOBS:
        number, name = int(job) + 3, f"scale=tiny,data.count=1000,irl/loss=hinge,irl.seed={job}"
        new = shutil.copytree(copied / job, copied / str(number))
        change(new / "config.json", job={"number": number, "name": name}, artifacts__evaluate=f"hinge{job}")
        change(new / "metrics.json", **{"irl/auroc": 0.25 + int(job) / 8})
        plan.append({"number": number, "name": name, "folder": str(number)})
    change(copied / "plan.json", jobs=plan)
    (copied / "5" / "metrics.json").unlink()
    found = study.read(copied)
    assert {cell: len(runs) for cell, runs in found.cells.items()} == {"default": 3, "irl/loss=hinge": 2}
    rows = {row["metric"]: row for row in summary.summarise(found).data["comparisons"]}
    first = [found.runs[job].metrics["irl/auroc"] for job in range(2)]
    assert rows["irl/auroc"]["n"] == 2
    assert rows["irl/auroc"]["difference"] == pytest.approx(np.mean(first) - np.mean([0.25, 0.375]))
    assert rows["irl/auroc"]["unit"] == "2 fits of one expert"
    assert rows["irl/auroc"]["method"] == "no interval: completions.parquet of run 3 does not give its irl/auroc"
    assert "does not give its irl/auroc" in rows["irl/auroc"]["method"]
    assert rows["refinetuned/toxic_fraction"]["method"] == "all the same"


def test_what_cannot_be_computed_is_named_with_the_reason(three_seeds: Launched) -> None:
    missing = json.loads((three_seeds.folder / "report" / "summary.json").read_text())["not_computed"]
    assert not [reason for reason in missing.values() if reason.startswith(report.FAILED)]
    assert missing["comparisons"] == "there is one cell: nothing to compare"
    assert missing["variance_components"].startswith("it needs two nested seeds or more; here varies irl.seed")


def test_one_run_computes_what_one_run_can(copied: Path) -> None:
    found = summary.summarise(study.read(copied / "0"))
    row = found.data["cells"]["default"]["irl/auroc"]
    assert row["n"] == 1
    assert "sd" not in row
    assert "mean_low" not in row
    assert {"comparisons", "variance_components", "agreement", "spread_shares"} <= set(found.data["not_computed"])
    assert "left_open" in found.data  # the demonstrations leave open what they do, whatever the seeds


def test_parts_of_the_spread_add_up_and_are_found_where_they_were_put() -> None:
    generator = np.random.default_rng(0)
    prompts = np.repeat(np.arange(30), 4)
    mean = generator.normal(size=120)
    mean -= (np.bincount(prompts, mean) / 4)[prompts]
    other = generator.normal(size=120)
    other -= (np.bincount(prompts, other) / 4)[prompts]
    other -= other @ mean / (mean @ mean) * mean

    def only(constants: float, scale: float, direction: float) -> dict[str, float]:
        runs = [
            (1 + scale * a) * mean + direction * b * other + constants * generator.normal(size=30)[prompts]
            for a, b in ((-1, 1), (1, 1), (-1, -1), (1, -1))
        ]
        found = spread.shares(np.array(runs), prompts)
        return {name: share.value for name, share in found.items()}

    for parts, name in (((1, 0, 0), "offset"), ((0, 0.3, 0), "scale"), ((0, 0, 0.3), "direction")):
        assert only(*parts)[name] == pytest.approx(1, abs=1e-9)
    mixed = only(0.3, 0.2, 0.4)
    assert sum(mixed.values()) == pytest.approx(1)
    assert mixed["scale"] / mixed["direction"] == pytest.approx(0.04 * (mean @ mean) / (0.16 * (other @ other)))


def test_equal_rewards_have_no_spread_to_share_out() -> None:
    rewards = np.tile(np.arange(8.0), (3, 1))
    with pytest.raises(NotComputed, match="no spread to share out"):
        spread.shares(rewards, np.repeat([0, 1], 4))


def test_the_runs_lie_between_what_is_possible_at_their_own_loss(three_seeds: Launched) -> None:
    found = spread.left_open(study.read(three_seeds.folder))
    assert (found.excess > 0).all()
    for tolerance, possible in zip(found.tolerances, found.possible, strict=True):
        inside = found.excess <= tolerance
        assert (found.margins[inside] <= possible.high + 1e-9).all()
        assert (found.margins[inside] >= possible.low - 1e-9).all()
        assert (possible.low <= found.best + 1e-9).all()
        assert (found.best <= possible.high + 1e-9).all()
    widths = [float((possible.high - possible.low).mean()) for possible in found.possible]
    assert widths == sorted(widths)
    assert found.excess[found.excess <= max(found.tolerances)].size, "no run was looked at"


def test_the_loss_of_the_runs_is_that_of_their_curves(three_seeds: Launched) -> None:
    """The problem that is bounded is the one that the runs solved: same pairs, same scaling, same loss."""
    found = study.read(three_seeds.folder)
    opened = spread.left_open(found)
    problem_best = opened.excess.min()
    for place, run in enumerate(found.runs):
        folder = found.artifact(run, "irl")
        assert folder is not None
        best = json.loads((folder / "manifest.json").read_text())["info"]["best_epoch"]
        curve = found.curves["irl"]
        loss = curve[(curve["run"] == run.number) & (curve["step"] == best)]["loss"].iloc[0]
        other = curve[(curve["run"] == 0) & (curve["step"] == _best(found, 0))]["loss"].iloc[0]
        assert opened.excess[place] - opened.excess[0] == pytest.approx(loss - other, abs=1e-9)
    assert problem_best >= 0


def _best(found: study.Study, number: int) -> int:
    folder = found.artifact(found.runs[number], "irl")
    assert folder is not None
    return int(json.loads((folder / "manifest.json").read_text())["info"]["best_epoch"])


def test_three_numbers_of_what_is_left_open(three_seeds: Launched) -> None:
    """By hand from the bounds: pairs that are open at the calibrated tolerance, and who agrees on them."""
    opened = spread.left_open(study.read(three_seeds.folder))
    told = spread.summary(opened)
    possible = opened.possible[opened.level]
    fixed = (possible.low > 0) | (possible.high < 0)
    right = np.sign(opened.best) == np.sign(opened.truth)
    assert told["this_sample"]["open"].value == pytest.approx((~fixed).mean())
    for key, pairs in (("as_truth_where_determined", fixed), ("as_truth_where_open", ~fixed)):
        share = told["this_sample"][key]
        assert (share is None) == (not pairs.any())
        assert share is None or (share.value, share.n) == pytest.approx((right[pairs].mean(), pairs.sum()))
    assert sum(level["is_calibrated"] for level in told["levels"]) == 1
    assert told["the_method"]["excess_tolerances"].value == pytest.approx(
        opened.excess.mean() / opened.calibration.tolerance
    )
    assert 0 <= told["never_shown"]["directions"] <= told["never_shown"]["features"]


def test_a_direction_that_no_pair_shows_is_counted() -> None:
    """A feature of the prompt differs between completions, never within a pair; another differs in test pairs alone."""
    random = np.random.default_rng(0)
    features = random.normal(size=(400, 6)).astype(np.float32)
    features[:, 4] = np.tile(np.repeat(random.normal(size=50), 4), 2)
    features[:, 5] = 0
    frame = pd.DataFrame(
        {
            "part": np.tile(np.repeat(["fit", "test"], 100), 2),
            "policy": np.repeat(["expert", "baseline"], 200),
            "prompt_id": np.tile(np.repeat(np.arange(50), 4), 2),
            "sample": np.tile(np.arange(4), 100),
        }
    )
    features[100:110, 5] = 1
    seen = contrast.Demonstrations(frame, features)
    shown = spread._shown(seen, (features[100:200] - features[300:400]).astype(np.float64))
    assert (shown.features, shown.pairs, shown.fitted) == (6, 4, 100)
    assert shown.beside.tolist() == [True] * 10 + [False] * 90


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"irl__name": "placebo"}, "computed for irl=margin"),
        ({"irl__backbone__name": "lora"}, "the backbone was trained"),
        ({"irl__loss__name": "squared"}, "irl/loss=squared is not convex"),
        ({"irl__loss__correct_penalty": 3.0}, "only with 0 <= correct <= wrong"),
        ({"artifacts__features": "gone"}, "features of run 0 is not in the store"),
    ],
)
def test_what_the_demonstrations_leave_open_needs_one_convex_problem(
    copied: Path, changes: dict[str, Any], told: str
) -> None:
    for job in JOBS:
        change(copied / job / "config.json", **changes)
    with pytest.raises(NotComputed, match=re.escape(told)):
        spread.left_open(study.read(copied))


def test_runs_of_several_problems_are_not_thrown_together(copied: Path) -> None:
    change(copied / "1" / "config.json", irl__epochs=3)
    with pytest.raises(NotComputed, match=r"the runs differ in irl\.epochs"):
        spread.left_open(study.read(copied))


def test_the_pairs_that_are_asked_about_are_of_different_prompts() -> None:
    frame = pd.DataFrame({"prompt_id": np.repeat(np.arange(150), 4)})
    expert = np.arange(0, 600, 2)
    rows, others = spread._one_a_prompt(frame, expert, expert + 1)
    assert len(rows) == spread.PAIRS
    assert len(set(frame["prompt_id"].to_numpy()[rows])) == spread.PAIRS
    assert (others == rows + 1).all()


# --------------------------------------------------------------------------------------------- what is written


class Page(HTMLParser):
    """What a page refers to, and whether its tags are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.sources += [values["src"] or ""] if "src" in values else []
        self.links += [values["href"] or ""] if "href" in values else []
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_a_multirun_ends_with_a_page_that_needs_nothing_else(three_seeds: Launched) -> None:
    folder = three_seeds.folder / "report"
    shown = Page((folder / "index.html").read_text(encoding="utf-8"))
    assert shown.open == []
    assert shown.sources
    assert all(source.startswith("data:image/svg+xml;base64,") for source in shown.sources)
    for link in shown.links:
        assert link.startswith(("#", "data:")) or (folder / link).is_file(), link
    assert re.search(rf"report +{re.escape(str(folder.relative_to(three_seeds.cwd)))}/index\.html", three_seeds.stdout)


def test_figures_are_there_as_png_and_pdf_with_text(three_seeds: Launched) -> None:
    folder = three_seeds.folder / "report"
    names = {path.stem for path in folder.glob("*.png")}
    assert {"distribution", "left_open", "over_epochs", "toxicity", "frontier"} <= names
    assert names == {path.stem for path in folder.glob("*.pdf")}
    for path in folder.glob("*.pdf"):
        assert b"/FontFile2" in path.read_bytes(), f"{path.name}: its text is no text"


def test_the_same_numbers_are_on_the_terminal_in_the_page_and_in_the_summary(three_seeds: Launched) -> None:
    folder = three_seeds.folder / "report"
    data = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    texts = set(Page((folder / "index.html").read_text(encoding="utf-8")).texts)
    for key, row in data["cells"]["default"].items():
        told = [f"{row['mean']:.3f}", str(row["n"])]
        if "mean_low" in row:  # not all runs reach the expert's KL, and they share an expert
            told += [f"[{row['mean_low']:.3f}, {row['mean_high']:.3f}]", f"{row['sd']:.4f}"]
        assert set(told) <= texts, key
        line = re.search(rf"{re.escape(key)} +(.+)", three_seeds.stdout)
        assert line is not None
        assert all(number in line[1] for number in told), key
    measured = set().union(*(three_seeds.metrics(job) for job in range(3)))
    assert set(data["cells"]["default"]) == set(names.STUDY_METRICS) & measured


def test_tables_are_there_as_csv(three_seeds: Launched) -> None:
    folder = three_seeds.folder / "report"
    runs = pd.read_csv(folder / "runs.csv")
    assert runs["seed:irl.seed"].tolist() == [0, 1, 2]
    assert runs["irl/auroc"].tolist() == [three_seeds.metrics(job)["irl/auroc"] for job in range(3)]
    opened = pd.read_csv(folder / "left_open.csv")
    assert (opened["low"] <= opened["attained_low"] + 1e-9).all()
    assert opened["pair"].nunique() == json.loads((folder / "summary.json").read_text())["left_open"]["n_pairs"]


@pytest.mark.usefixtures("few_figures")
def test_the_same_runs_give_the_same_report(copied: Path, tmp_path: Path) -> None:
    found = study.read(copied)
    pages = [report.write(found, tmp_path / name).folder for name in ("one", "two")]
    for name in ("summary.json", "index.html", "cells.csv", "left_open.csv", "distribution.pdf", "distribution.png"):
        one, two = ((folder / name).read_bytes() for folder in pages)
        assert one == two, name


@pytest.mark.usefixtures("few_figures")
def test_the_report_is_that_of_one_thread_on_every_machine(copied: Path) -> None:
    def threads() -> set[int]:
        return {pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"}

    seen: list[set[int]] = []
    with threadpoolctl.threadpool_limits(2):
        report.write(study.read(copied), progress=lambda what, done, total: seen.append(threads()))
        assert threads() == {2}
    assert seen
    assert set().union(*seen) == {1}


@pytest.mark.usefixtures("few_figures")
def test_texts_of_a_user_are_no_html(copied: Path) -> None:
    change(copied / "plan.json", command="python launch.py '<script>alert(1)</script>'")
    text = report.write(study.read(copied), None).page.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;" in text


@pytest.mark.usefixtures("few_figures")
def test_a_report_is_whole_or_the_old_one_stays(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = study.read(copied)
    old = report.write(found).page.read_bytes()
    monkeypatch.setattr(page, "render", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report.write(found)
    assert (copied / "report" / "index.html").read_bytes() == old
    assert not list(copied.glob(".report-*"))


@pytest.mark.usefixtures("few_figures")
def test_files_of_others_in_the_folder_stay(copied: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    (mine / "summary.json").write_text('{"files": ["../notes.txt", "notes.txt/..", 3, "..", ".", "inside"]}')
    (mine / "inside").mkdir()
    found = study.read(copied)
    first = {path.name for path in report.write(found, mine).folder.iterdir()}
    for job in JOBS[1:]:
        (copied / job / "metrics.json").unlink()
    second = {path.name for path in report.write(study.read(copied), mine).folder.iterdir()}
    assert (mine / "notes.txt").read_text() == "mine"
    assert (mine / "inside").is_dir()
    assert "distance_matrix.png" in first - second  # of one run there is none: the old one is no longer there


@pytest.mark.usefixtures("few_figures")
def test_a_figure_that_fails_costs_the_figure_alone(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(report.OF_STUDY, "triangle", lambda found: 1 / 0)
    written = report.write(study.read(copied))
    assert written.missing["triangle"] == f"{report.FAILED} (ZeroDivisionError: division by zero)"
    assert "distribution" in written.images


@pytest.mark.parametrize("stage", ["features", "irl", "demonstrations"])
def test_a_damaged_artifact_costs_what_it_is_needed_for(copied: Path, stage: str) -> None:
    found = study.read(copied)
    folder = found.artifact(found.runs[0], stage)
    assert folder is not None
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.parquet")]:
        path.write_bytes(b"no such format")
    with pytest.raises(NotComputed, match="an artifact of these runs cannot be read"):
        spread.left_open(found)


@pytest.mark.usefixtures("few_figures")
def test_what_is_missing_is_on_the_page(copied: Path) -> None:
    (copied / "1" / "metrics.json").unlink()
    (copied / "2" / "completions.parquet").write_bytes(b"no parquet")
    text = report.write(study.read(copied)).page.read_text(encoding="utf-8")
    assert "1 of 3 jobs have no result and are in no number" in text
    assert "Not computed" in text


@pytest.mark.parametrize("damage", ["missing", "cut", "nan"])
def test_rewards_that_cannot_be_compared_are_left_out_and_named(copied: Path, damage: str) -> None:
    path = copied / "1" / "completions.parquet"
    table = pd.read_parquet(path)
    path.unlink()
    if damage == "cut":
        table.iloc[:5].to_parquet(path)
    if damage == "nan":
        table.assign(learned=table["learned"].where(table.index != 1)).to_parquet(path)
    found = study.read(copied)
    assert found.rewards is not None
    assert [column for column in found.rewards if isinstance(column, int)] == [0, 2]
    assert found.rewards.notna().all(axis=None)
    (note,) = html.notes(found)
    assert note.startswith("completions.parquet of run(s) 1 is missing, cut or not finite")


@pytest.mark.usefixtures("few_figures")
def test_the_command_writes_and_says_where(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([str(copied.parent), "--out", "elsewhere"]) == 0
    told = capsys.readouterr().out
    assert "written: elsewhere/index.html" in told
    assert "not computed: comparisons (there is one cell: nothing to compare)" in told
    assert Path("elsewhere/summary.json").is_file()


def test_the_command_refuses_what_is_no_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_the_report_needs_no_torch() -> None:
    program = "import irl_exp.analysis.report, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "trl", "wandb", "hydra"} & set(done.stdout.split())


def test_bounds_are_asked_of_the_pairs_that_irl_saw(three_seeds: Launched) -> None:
    """By a slow road: the optimum of the problem found from the artifacts again, with nothing of spread.py."""
    found = study.read(three_seeds.folder)
    run = found.runs[0]
    demos, phi = (found.artifact(run, stage) for stage in ("demonstrations", "features"))
    assert demos is not None
    assert phi is not None
    from safetensors.numpy import load_file

    frame = pd.read_parquet(demos / "demonstrations.parquet")
    features = load_file(phi / "features.safetensors")["features"].astype(np.float64)
    fit = (frame["part"] == "fit").to_numpy()
    learned = found.artifact(run, "irl")
    assert learned is not None
    ridge = json.loads((learned / "manifest.json").read_text())["info"]["ridge"]
    scaling = contrast.Scaling.fit(features[fit].astype(np.float32), run.config["irl.scaling"], ridge)
    expert, baseline = (features[fit & (frame["policy"] == policy).to_numpy()] for policy in ("expert", "baseline"))
    pairs = (expert - baseline) @ scaling.transform
    loss = determined.max_margin(correct_penalty=1.0, wrong_penalty=2.0)
    best = determined.optimum(pairs, loss, max_norm=run.config["irl.max_norm"][0], precision=1e-5)
    assert spread.left_open(found).standard_error == pytest.approx(best.standard_error, rel=1e-2)
