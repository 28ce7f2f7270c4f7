"""The page by itself, without its figures: the order of what is said, names, samples of text, folds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import small_statements
from small_figures import made
from small_study import Made

from irl_exp.analysis import page
from irl_exp.analysis.html import Drawn
from irl_exp.analysis.study import Study
from irl_exp.analysis.summary import Summary
from irl_exp.config import CONF

FIGURE = Drawn("distribution", "How close it is.", ("Each point is a run.",), "QUJD", narrow=True)


def shown(study: Study, drawn: Mapping[str, Drawn] | None = None, **data: Any) -> str:
    return page.render(study, Summary({"cells": {"default": {}}, **data}, {}), drawn or {}, {}, [])


def with_texts(study: Study, completion: str) -> Study:
    """The files of all runs with prompts and completions in them."""
    for run in study.runs:
        path = run.folder / "completions.parquet"
        table = pd.read_parquet(path)
        prompts = [f"<b>prompt {number}</b>" for number in table["prompt_id"]]
        table.assign(prompt=prompts, completion=completion, learned=0.5).to_parquet(path)
    return study


def test_the_answer_comes_first_and_then_the_figures_that_carry_it(tmp_path: Path) -> None:
    text = shown(made(tmp_path, [Made(), Made(seed=1)]), {"distribution": FIGURE})
    places = [text.index(part) for part in ("<h1>", "RLHF on R*", 'id="distribution"', "<nav>", 'id="tables"')]
    assert places == sorted(places)
    assert "2 runs" in text


@pytest.mark.parametrize("path", sorted((CONF / "study").glob("*.yaml")), ids=lambda path: path.stem)
def test_what_a_study_asks_holds_for_any_number_of_runs(path: Path) -> None:
    question = re.search(r"^# .+$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert question is not None
    assert not re.search(r"\d+ (rewards|runs|seeds|policies)", question[0])


def test_a_figure_opens_large_and_how_to_read_it_is_behind_a_fold(tmp_path: Path) -> None:
    text = shown(made(tmp_path, [Made()]), {"distribution": FIGURE})
    figure = text[text.index('id="at-distribution"') :]
    assert 'href="#distribution"' in figure
    assert 'href="#at-distribution"' in figure  # closes it, where the reader was
    fold = figure[figure.index("<details>") : figure.index("</details>")]
    assert "Each point is a run." in fold
    assert "How close it is." not in fold
    assert "<script" not in text


def test_samples_are_the_first_texts_of_the_first_run_behind_a_warning(tmp_path: Path) -> None:
    study = with_texts(made(tmp_path, [Made(), Made(seed=1)]), "you <script>alert(1)</script>\u202e\x1b[31m fool")
    text = shown(study)
    section = text[text.index('id="samples"') : text.index('id="tables"')]
    assert "of run 0 (irl.seed=0), the first whose texts can be read" in section
    before, fold = section.split("<details>")
    assert "fool" not in before
    assert "They may be insulting" in fold
    assert re.findall(r"<h3>&lt;b&gt;prompt (\d)", fold) == ["0", "1", "2"]
    assert fold.count("you &lt;script&gt;alert(1)&lt;/script&gt;\\u202e\\x1b[31m fool") == 9
    assert "<b>reference</b>, R* -1.00, second judge -1.00, learned reward 0.50 (toxic)" in fold


def test_a_run_without_texts_is_passed_over_and_without_any_there_is_no_section(tmp_path: Path) -> None:
    study = with_texts(made(tmp_path, [Made(), Made(seed=1)]), "hello")
    (study.runs[0].folder / "completions.parquet").write_bytes(b"no parquet")
    assert "of run 1 (irl.seed=1)" in shown(study)
    (study.runs[1].folder / "completions.parquet").unlink()
    assert 'id="samples"' not in shown(study)


def test_metrics_have_names_and_one_cell_none(tmp_path: Path) -> None:
    text = shown(made(tmp_path, [Made(), Made(seed=1)]))
    table = text[text.index('id="tables"') :]
    assert "learned reward: AUROC against the label of R*" in table
    assert "irl/auroc" not in table
    assert "default" not in table


def test_of_several_cells_each_is_named_once_above_its_rows(tmp_path: Path) -> None:
    text = shown(made(tmp_path, [Made(cell=f"irl/loss={loss}") for loss in ("hinge", "squared")]))
    assert text.count('<th class="group" colspan="7">irl/loss=hinge</th>') == 1


def test_words_follow_the_reward(tmp_path: Path) -> None:
    text = shown(made(tmp_path, [Made(config={"reward": {"name": "length"}})]))
    assert "completions with R* &lt; 0" in text
    assert "toxic completions" not in text


def test_shares_of_few_runs_are_no_finding(tmp_path: Path) -> None:
    study = made(tmp_path, [Made()])
    names = ("offset", "scale", "direction")
    vague = shown(study, spread_shares={key: {"value": 0.8, "n": 9} for key in names})
    assert "80.0%" not in vague
    assert "these 9 runs are too few to say" in vague
    assert "over these 10 runs they are 80.0%" in shown(
        study, spread_shares={key: {"value": 0.8, "n": 10} for key in names}
    )


def test_statements_of_several_runs_say_which_come_back(tmp_path: Path) -> None:
    study = made(tmp_path, [Made(), Made(seed=1), Made(seed=2)])
    hostile = small_statements.statement("<b>you\x1b[0m", 0.5)
    for number, found in enumerate([(small_statements.statement(), hostile), (small_statements.statement(),), ()]):
        small_statements.write(study.runs[number].folder, found)
    text = shown(study)
    section = text[text.index('id="statements"') : text.index('id="tables"')]
    first, second = section.split("<li class=")[1:]
    assert "second person" in first
    assert "2 of 3 runs" in first
    assert first.count("<circle") == 2
    assert "charges for" in first
    assert "&lt;b&gt;you\\x1b[0m" in second
    assert "1 of 3 runs" in second
    assert "No statement holds in run(s) 2." in section
    assert 'href="#statements"' in text


def test_a_study_without_statements_has_no_such_part_and_a_damaged_list_is_named(tmp_path: Path) -> None:
    study = made(tmp_path, [Made(), Made(seed=1)])
    assert 'id="statements"' not in shown(study)
    (study.runs[1].folder / "statements.json").write_text("[1]")
    assert "run 1: statements.json: " in shown(study)
