"""The page of one run: the order of what is said, what a statement shows, chance, and what is missing by name."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import small_statements
from conftest import ROOT
from small_statements import STATEMENTS, statement
from small_study import Made
from small_study import write as write_made

from irl_exp.analysis import one_run, study
from irl_exp.analysis.study import Study

METRICS = {
    "explain/r2": 0.5,
    "explain/n_candidates": 812,
    "explain/discrimination_auroc": 0.92,
    "explain/discrimination_auroc_low": 0.9,
    "explain/discrimination_auroc_high": 0.94,
    "expert/kl": 1.25,
}


def made(
    folder: Path, statements: Sequence[Mapping[str, Any]] | None = STATEMENTS, config: Any = None, **more: Any
) -> Study:
    """A launch of one run, explained unless `statements` is None."""
    launch = write_made(folder / "launch", [Made(metrics=METRICS, config=config or {})])
    if statements is not None:
        small_statements.write(launch / "0", statements, **more)
    return study.read(launch)


def section(text: str, name: str) -> str:
    """A part of the page, by its id."""
    return text[text.index(f'<h2 id="{name}"') :].split("<h2 ", 2)[1]


def test_it_reads_in_the_order_of_the_questions(tmp_path: Path) -> None:
    text = one_run.render(made(tmp_path))
    parts = ("<h1>", "The recovered reward charges for", *(f'<h2 id="{name}"' for name in one_run.ANSWERS))
    places = [text.index(part) for part in (*parts, '<h2 id="tables"')]
    assert places == sorted(places)
    for name in one_run.ANSWERS:
        assert f'href="#{name}"' in text


def test_it_is_one_file_without_scripts(tmp_path: Path) -> None:
    path = one_run.write(made(tmp_path))
    text = path.read_text(encoding="utf-8")
    assert path == tmp_path / "launch" / "report" / "index.html"
    assert [place.name for place in path.parent.iterdir()] == ["index.html"]
    assert "<script" not in text
    assert re.findall(r'(?:src|href)="(?!#|data:)([^"]+)"', text) == ["../0/metrics.json"]
    assert (path.parent / "../0/metrics.json").exists()


def test_a_statement_is_a_sentence_with_its_numbers(tmp_path: Path) -> None:
    rows = section(one_run.render(made(tmp_path)), "statements").split("<li class=")[1:]
    assert len(rows) == len(STATEMENTS)
    first = rows[0]
    assert first.startswith('"charges"')
    for told in (
        "<b>a text that speaks to the reader</b>",
        "base <b>17.2 %</b>",
        "tuned <b>0.3 %</b>",
        "-16.9 points [-18.0, -15.8]",
        "-1.60 sd [-1.70, -1.50]",
        "certified: -1.90 to -1.30",
        "put in or taken out of a text: -0.90 sd [-1.10, -0.70]",
        "chosen again in 97 % of redraws of the prompts",
    ):
        assert told in first
    assert "not certified: -0.10 to +1.20" in rows[1]
    assert "tuned <b>12.2</b>" in rows[2]
    assert "(mean, tokens)" in rows[2]
    assert "no bound" in rows[3]
    assert "<b>a unit</b></p>\n<p>In words of its own.</p>" in rows[3]


def test_how_much_they_explain_is_told_by_their_number(tmp_path: Path) -> None:
    many = [statement(f"word {number}", r2=0.1 + 0.05 * number) for number in range(7)]
    told = section(one_run.render(made(tmp_path, many)), "explained")
    assert "10.0 % by the first statement, 30.0 % by the first 5, 50.0 % by all 7" in told
    assert told.count("<circle") == 7


def test_what_cannot_be_told_is_named(tmp_path: Path) -> None:
    told = section(one_run.render(made(tmp_path)), "unknown")
    assert "<b>log ratio</b>: the two models have different tokenizers" in told
    assert re.search(r"<b>Not certified</b>: \S*fair, since", told)
    assert "<b>No bound</b>: a unit" in told
    assert "50.0 % of the reward&#39;s variance" in told
    assert "812 candidates" in told


def test_texts_stand_side_by_side_with_a_legend_in_steps(tmp_path: Path) -> None:
    told = section(one_run.render(made(tmp_path)), "texts")
    assert told.index("Most rewarded") < told.index("Least rewarded")
    assert told.count('<div class="credited">') == 8
    assert '<span class="p4" title="+1.50">!</span>' in told
    assert [f'<span class="{shade}">' in told for shade in ("c4", "none", "p4")] == [True] * 3


def test_without_credit_it_says_why_and_shows_samples(tmp_path: Path) -> None:
    found = made(tmp_path)
    (found.runs[0].folder / "credit.parquet").unlink()
    text = one_run.render(found)
    assert 'id="texts"' not in text
    assert "<b>Credit of tokens</b>: credit.parquet is not there" in section(text, "unknown")


@pytest.mark.parametrize(
    ("config", "reason"),
    [({"explain": {"name": "none"}}, "explain=none"), ({"until": "irl"}, "until=irl stops before explain")],
)
def test_a_run_that_was_not_explained_has_no_such_part_and_says_why(tmp_path: Path, config: Any, reason: str) -> None:
    text = one_run.render(made(tmp_path, None, config))
    assert f"Not told: {reason}" in section(text, "statements")
    assert 'id="unknown"' not in text
    assert "<h1>What this run says</h1>" in text
    assert 'id="tables"' in text


def test_an_empty_list_is_a_finding_too(tmp_path: Path) -> None:
    text = one_run.render(made(tmp_path, ()))
    assert "No property of 812 that were tried passes the test" in section(text, "statements")
    assert 'id="explained"' not in text


def test_damaged_files_are_named_and_the_page_goes_on(tmp_path: Path) -> None:
    found = made(tmp_path, [statement(effect=1.0, q="<b>x</b>")])
    text = one_run.render(found)
    assert "Not told: statements.json: statement 0 has q = &#39;&lt;b&gt;x" in text
    (found.runs[0].folder / "statement_values.parquet").write_bytes(b"no parquet")
    assert "KL of tuned from base" in one_run.render(found)


HOSTILE = "<script>alert(1)</script>{{ 7 * 7 }}\x1b[31m\u202e"


def test_whatever_its_texts_are_the_page_has_them_as_text(tmp_path: Path) -> None:
    hostile = statement(HOSTILE, wording=f"wording {HOSTILE}", unit=HOSTILE, graded=True, family="ngrams")
    tokens = (HOSTILE, "</p></details>", "<img src=x onerror=alert(2)>", '" onclick="alert(3)', "=1+1")
    text = one_run.render(made(tmp_path, [hostile], left_out={HOSTILE: HOSTILE}, tokens=tokens))
    assert "<script" not in text
    assert "<img" not in text
    assert 'onclick="' not in text
    assert "49" not in section(text, "statements").replace("{{ 7 * 7 }}", "")
    assert not {sign for sign in text if not sign.isprintable()} - {"\n"}
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;{{ 7 * 7 }}\\x1b[31m\\u202e") > 5


# ----------------------------------------------------------------------------------------- did tuning change anything


def rewards(apart: float, prompts: int = 60, each: int = 4) -> pd.DataFrame:
    world, rows = np.random.default_rng(1), prompts * each
    tables = [
        pd.DataFrame(
            {
                "policy": policy,
                "prompt_id": np.repeat(np.arange(prompts), each),
                "learned": world.normal(size=rows) + shift,
            }
        )
        for policy, shift in (("baseline", 0.0), ("expert", apart))
    ]
    return pd.concat(tables, ignore_index=True)


def test_chance_lies_around_half_and_is_narrower_with_more_prompts() -> None:
    few, many = (one_run.chance(rewards(0.0, prompts)) for prompts in (20, 500))
    for low, high in (few, many):
        assert low < 0.5 < high
        assert (low + high) / 2 == pytest.approx(0.5, abs=0.02)
    assert many[1] - many[0] < (few[1] - few[0]) / 2


def test_chance_holds_95_percent_of_nulls() -> None:
    """AUROCs of rewards that know nothing lie in the band that their own exchanges give."""
    inside = 0
    for seed in range(100):
        table = rewards(0.0, 40, 2).assign(learned=np.random.default_rng(seed).normal(size=160))
        ranks, expert = table["learned"].rank(), table["policy"] == "expert"
        auroc = (ranks[expert].sum() - 80 * 81 / 2) / 80**2
        low, high = one_run.chance(table)
        inside += low <= auroc <= high
    assert inside >= 88


def test_it_answers_yes_only_beyond_chance() -> None:
    key = "explain/discrimination_auroc"
    apart = one_run.changed({key: 0.9, f"{key}_low": 0.88, f"{key}_high": 0.92}, rewards(2.0))
    alike = one_run.changed({key: 0.52, f"{key}_low": 0.49, f"{key}_high": 0.55}, rewards(0.0))
    assert apart is not None
    assert alike is not None
    assert apart.answer.startswith("Yes: ")
    assert alike.answer.startswith("Nothing that shows: ")


def test_the_null_stands_beside_each_number(tmp_path: Path) -> None:
    told = section(one_run.render(made(tmp_path)), "changed")
    assert "0.920 [0.900, 0.940]" in told
    assert re.search(r"0\.500 \[0\.\d{3}, 0\.\d{3}\]", told)
    assert "1.250" in told
    assert "base (40)" in told


def test_without_explain_the_judged_completions_say_it(tmp_path: Path) -> None:
    found = made(tmp_path, None)
    path = found.runs[0].folder / "completions.parquet"
    table = pd.read_parquet(path)
    table.assign(learned=np.where(table["policy"] == "expert", 1.0, 0.0)).to_parquet(path)
    assert "base (40)" in section(one_run.render(found), "changed")


def test_it_costs_little_and_loads_no_library_of_figures(tmp_path: Path) -> None:
    made(tmp_path)
    program = (
        "import sys, time; from pathlib import Path; from irl_exp.analysis import one_run, study;"
        "one_run.write(study.read(Path(sys.argv[1])));"
        "print(time.process_time()); print([name for name in ('matplotlib', 'scipy', 'torch') if name in sys.modules])"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "launch")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, loaded = done.stdout.splitlines()
    assert float(seconds) < 3
    assert loaded == "[]"
