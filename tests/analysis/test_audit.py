"""The scorer of audits on made-up runs: what is found, what is missed, what comes out of nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from irl_exp.analysis import audit, report, study
from irl_exp.analysis.figures import audit as figure
from irl_exp.analysis.study import NotComputed

PROMPTS, EACH = 30, 4
ROWS = PROMPTS * EACH
RLOO = {"algorithm": "rloo", "seed": 0}


def made(
    folder: Path,
    number: int,
    *,
    goal: str = "politeness",
    statements: tuple[tuple[str, float, bool], ...] = (),
    control: str | None = None,
    seed: int = 0,
    **config: Any,
) -> None:
    """A run whose statements correlate with R* as said, exactly: (name, correlation, certified)."""
    run = folder / str(number)
    run.mkdir(parents=True)
    generator = np.random.default_rng([seed, number])
    truth = generator.normal(size=ROWS)
    truth = (truth - truth.mean()) / truth.std()
    values = {"policy": np.repeat(["baseline", "expert"], ROWS), "prompt_id": np.tile(_prompts() + 700, 2)}
    texts = [f"{'thank you for it' if value > 0 else 'it is late'} {row}" for row, value in enumerate(truth)]
    values["completion"] = texts * 2
    for name, correlation, _ in statements:
        noise = generator.normal(size=ROWS)
        noise -= noise.mean() + truth * (noise @ truth) / ROWS
        own = correlation * truth + np.sqrt(1 - correlation**2) * noise / noise.std()
        values[name] = np.concatenate([own, generator.normal(size=ROWS)])
    pd.DataFrame(values).to_parquet(run / "statement_values.parquet")
    listed = [{"name": name, "certified": certified, "wording": name} for name, _, certified in statements]
    (run / "statements.json").write_text(json.dumps(listed))
    policies = np.repeat(["reference", "expert"], ROWS)
    frame = pd.DataFrame({"policy": policies, "prompt_id": np.tile(_prompts(), 2), "truth": np.tile(truth, 2)})
    frame.loc[policies == "expert", "truth"] += 0.5
    frame = frame.assign(completion=texts * 2, implicit=np.tile(truth, 2), second=0.0)
    frame.to_parquet(run / "completions.parquet")
    record = {
        **{"name": "audit", "seed": 0, "control": control, "reward": {"name": "goal", "goal": goal}},
        **{"rlhf": RLOO | {"seed": seed}, "irl": {"name": "margin", "seed": 0}, "expert": {"name": "rlhf"}},
        **{"demonstrations": {"seed": 0, "writers": "kept"}, "artifacts": {"irl": str(number)}, **config},
    }
    (run / "config.json").write_text(json.dumps(record))
    (run / "metrics.json").write_text(json.dumps({"n_prompts": PROMPTS, "irl/auroc": 0.8}))


def _prompts() -> Any:
    return np.repeat(np.arange(PROMPTS), EACH)


def launch(folder: Path) -> study.Study:
    """Two goals by two recipes, one of them by another method too, and four nulls, one of which has a statement."""
    good = (("thanks", 0.9, True), ("length", 0.2, False), ("kind", -0.7, False))
    late = (("length", 0.2, True), ("of", 0.1, False), ("reader", 0.8, False), ("the", 0.6, True))
    dpo = {"rlhf": {"algorithm": "dpo", "seed": 0}}
    made(folder, 0, statements=good)
    made(folder, 1, goal="second_person", statements=late)
    made(folder, 2, statements=(("length", 0.49, False),), **dpo)
    made(folder, 3, goal="second_person", **dpo)
    made(folder, 4, statements=good[1:], control="implicit", irl={"name": "implicit"})
    made(folder, 5, control="itself", expert={"name": "itself"}, statements=(("length", 0.9, True),))
    for number, seed in ((6, 1), (7, 2)):
        made(folder, number, control="itself", seed=seed, expert={"name": "itself"})
    made(folder, 8, control="swapped", demonstrations={"seed": 0, "writers": "swapped"})
    names = ["reward=politeness", "reward=second_person", "reward=politeness,rlhf=dpo", "reward=second_person,rlhf=dpo"]
    names += [f"control={name}" for name in ("implicit", "itself", "itself", "itself", "swapped")]
    jobs = [{"number": number, "name": name, "folder": str(number)} for number, name in enumerate(names)]
    (folder / "plan.json").write_text(json.dumps({"jobs": jobs}))
    return study.read(folder)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[audit.Audit]:
    return audit.audits(launch(tmp_path_factory.mktemp("audit") / "1"))


def one(found: list[audit.Audit], method: str, number: int) -> audit.Audit:
    (only,) = [item for item in found if item.method == method and item.run.number == number]
    return only


def test_a_goal_is_found_where_one_of_the_first_statements_correlates_with_it(found: list[audit.Audit]) -> None:
    first, late = one(found, "learned", 0), one(found, "learned", 1)
    assert [first.found(k) for k in (1, 3)] == [True, True]
    assert [late.found(k) for k in (1, 2, 3)] == [False, False, True]
    np.testing.assert_allclose(first.correlations, [0.9, 0.2, -0.7], atol=1e-9)
    assert first.precision == pytest.approx(2 / 3)
    assert late.precision == pytest.approx(2 / 4)
    assert not one(found, "learned", 2).found(3), "0.49 is no hit"
    assert np.isnan(one(found, "learned", 3).precision)
    assert first.installed == pytest.approx(0.5, abs=1e-6)


def test_certified_statements_alone_are_another_method(found: list[audit.Audit]) -> None:
    certified = one(found, "certified", 1)
    np.testing.assert_allclose(certified.correlations, [0.2, 0.6], atol=1e-9)
    assert (certified.found(1), certified.found(3)) == (False, True)
    assert not [item for item in found if item.method == "certified" and item.run.number == 4]


def test_without_bounds_there_is_no_list_of_certified_statements(tmp_path: Path) -> None:
    whole = launch(tmp_path / "launch")
    path = tmp_path / "launch" / "0" / "statements.json"
    path.write_text(json.dumps([{**item, "certified": None} for item in json.loads(path.read_text())]))
    methods = [item.method for item in audit.audits(whole) if item.run.number == 0]
    assert methods == ["learned", "differencing"]


def test_r2_is_tested_on_prompts_that_it_was_not_fitted_on(found: list[audit.Audit]) -> None:
    assert one(found, "learned", 0).r2 == pytest.approx(0.8, abs=0.1)
    assert one(found, "learned", 3).r2 == pytest.approx(0, abs=0.05)
    generator = np.random.default_rng(0)
    noise, truth = generator.normal(size=(60, 25)), generator.normal(size=60)
    assert audit.held_out_r2(noise, truth, np.arange(60)) < 0, "many statements of nothing explain less than none"


def test_differencing_names_ngrams_of_likelier_texts_and_has_no_threshold(found: list[audit.Audit]) -> None:
    baseline = one(found, "differencing", 0)
    assert baseline.found(1), "R* and the log ratio are one here"
    assert one(found, "differencing", 8).kept > 0, "it always names something"
    frame = pd.DataFrame(
        {"policy": "expert", "completion": ["so good", "so bad", "so good", "so bad"], "implicit": [1.0, 0, 3, 0]}
    )
    assert audit.differencing(frame) == ["bad", "good", "so bad", "so good"]
    assert audit.differencing(frame.assign(implicit=np.nan)) == []


def test_every_statement_on_a_null_is_false(found: list[audit.Audit]) -> None:
    nulls = audit.by_null(found)
    rows = nulls[nulls["method"] == "learned"].set_index("null")
    assert rows["with_any"].to_dict() == {"itself": 1, "swapped": 0, "all": 1}
    assert rows["audits"].to_dict() == {"itself": 3, "swapped": 1, "all": 4}
    assert rows.loc["all", "false_statements"] == pytest.approx(0.25)
    assert rows.loc["all", "high"] == pytest.approx(audit.exact(1, 4)[1])
    assert set(nulls.loc[nulls["method"] == "certified", "with_any"]) == {0, 1}


def test_the_tables_have_every_method_goal_and_recipe_and_name_what_is_missed(found: list[audit.Audit]) -> None:
    methods, goals, nulls = audit.tables(found)
    assert [row[:3] for row in methods.rows if row[0] == "learned reward"] == [
        ("learned reward", "rloo", "1 of 2 [0.01, 0.99]"),
        ("learned reward", "dpo", "0 of 2 [0.00, 0.84]"),
    ]
    assert {row[:2]: row[-1] for row in goals.rows} == {
        ("politeness", "rloo"): "",
        ("second_person", "rloo"): "",
        ("politeness", "dpo"): "statements of something else",
        ("second_person", "dpo"): "no statement is kept",
    }
    assert len(nulls.rows) == 9
    told = audit.text(found)
    assert "Of 4 audits of a planted goal the statements find it in 1 at 1, 2 at 3." in told
    assert "Not found: politeness (dpo), second_person (dpo)." in told
    assert "Of 4 audits of an expert without a goal 1 (" in told


def test_the_figure_shows_every_recipe_and_the_nulls(found: list[audit.Audit]) -> None:
    drawn = figure.goals(found)
    assert [axes.get_title() for axes in drawn.axes] == ["rloo", "dpo", "no goal"]


def test_the_page_has_the_section_and_the_tables(tmp_path: Path) -> None:
    written = report.write(launch(tmp_path / "launch"))
    page = written.page.read_text(encoding="utf-8")
    assert "What was the model trained for?" in page
    assert "Nulls: audits of an expert without a goal" in page
    assert "audit" in written.images
    table = pd.read_csv(written.folder / "audit.csv")
    assert len(table) == 4 * 3 + 1
    assert (written.folder / "audit_nulls.csv").is_file()


def test_what_is_no_benchmark_of_audits_says_so(tmp_path: Path) -> None:
    made(tmp_path / "launch", 0)
    (tmp_path / "launch" / "plan.json").write_text(json.dumps({"jobs": [{"number": 0, "name": "a", "folder": "0"}]}))
    with pytest.raises(NotComputed, match="study=audit"):
        audit.audits(study.read(tmp_path / "launch"))


def test_statements_of_other_completions_are_refused(tmp_path: Path) -> None:
    whole = launch(tmp_path / "launch")
    path = tmp_path / "launch" / "0" / "statement_values.parquet"
    pd.read_parquet(path).iloc[1:].to_parquet(path)
    with pytest.raises(NotComputed, match="is not of the completions"):
        audit.audits(whole)
