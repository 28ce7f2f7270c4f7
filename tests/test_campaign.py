"""The table of the fault campaign must be true: what did not hold is counted, named, and fails its test."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from campaign import BEGIN, END, SUBJECT, TRIAL, Campaign, Trials, pytest_pyfunc_call, write

numbers = itertools.count()


def report(trials: Trials | None = None, *, line: int = 1, outcome: str = "passed", **more: Any) -> Any:
    """What reaches the process that shows the results."""
    properties = [(SUBJECT, ("Disks", "it is said")), *(trials.item.user_properties if trials else [])]
    about = {"user_properties": properties, "when": "call", "location": ("tests/faults/test_x.py", line, "test_a_b")}
    about |= {"nodeid": f"test_x.py::{next(numbers)}"}
    ends = {end: end == outcome for end in ("passed", "failed", "skipped")}
    return SimpleNamespace(**about | ends | {"longreprtext": "E  AssertionError: why"} | more)


@pytest.fixture
def tried() -> Trials:
    """Three trials of one row, one each of how they can end, and one of another row."""
    trials = Trials(SimpleNamespace(user_properties=[]))  # type: ignore[arg-type]
    for size in (1, 2, 3):
        with trials("a small disk", size):
            if size == 2:
                pytest.skip("no right to mount")
            assert size != 3, "half a file"
    with trials("a read-only disk"):
        pass
    return trials


def table(*reports: Any) -> str:
    campaign = Campaign()
    for one in reports:
        campaign.pytest_runtest_logreport(one)
    return "\n".join(campaign.sections().values())


def test_what_did_not_hold_is_counted_and_named(tried: Trials) -> None:
    found = table(report(tried, outcome="failed"))
    assert found.startswith("### Disks\n\n3 trials, 2 held, of the code `")
    assert "\n*Held* means: it is said\n" in found
    assert "| a small disk | 2 | 1 | 3: half a file; not tried: no right to mount |" in found
    assert "| a read-only disk | 1 | 1 |  |" in found


def test_a_test_whose_trials_did_not_all_hold_fails(tried: Trials) -> None:
    item = SimpleNamespace(stash=SimpleNamespace(get=lambda key, default: tried))
    hook = pytest_pyfunc_call(item)  # type: ignore[arg-type]
    next(hook)
    with pytest.raises(pytest.fail.Exception, match=r"(?s)1 did not hold.*a small disk \[3\].*half a file"):
        next(hook)


def test_a_test_that_fails_or_is_skipped_as_a_whole_is_in_the_table() -> None:
    found = table(
        report(line=1, outcome="failed"),
        report(line=1, outcome="failed", when="setup", location=_at(1, "test_d")),
        report(
            line=2,
            outcome="skipped",
            when="setup",
            longrepr=("file", 1, "Skipped: not here"),
            location=_at(2, "test_c"),
        ),
    )
    assert "| a b | 1 | 0 | E  AssertionError: why |" in found
    assert "| c | 0 | 0 | not tried: not here |" in found
    assert "| d | 0 | 0 | not tried: E  AssertionError: why |" in found


def _at(line: int, name: str) -> tuple[str, int, str]:
    return "tests/faults/test_x.py", line, name


def test_subjects_and_rows_stand_in_the_order_of_the_files(tried: Trials) -> None:
    late = report(tried, line=9)
    early = report(line=2, user_properties=[(SUBJECT, ("Disks", "")), (TRIAL, ("first", "held", ""))])
    first = report(
        user_properties=[(SUBJECT, ("Another", "")), (TRIAL, ("x", "held", ""))],
        location=("tests/faults/test_a.py", 5, "t"),
    )
    found = table(late, early, first)
    assert re.findall(r"^### (.*)|^\| (first|a small disk) ", found, re.MULTILINE) == [
        ("Another", ""),
        ("Disks", ""),
        ("", "first"),
        ("", "a small disk"),
    ]


def test_each_case_of_a_test_counts() -> None:
    same = [report(user_properties=[(SUBJECT, ("Disks", "")), (TRIAL, ("first", "held", ""))]) for _ in range(3)]
    assert "\n3 trials, 3 held, of" in table(*same)


def test_a_table_takes_the_place_of_the_earlier_one_of_its_subject(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\n\n### A\n\nold \\1\n\n### C\n\nkept\n\n| x |\n\n{END}\nafter\n### D\n")
    write(page, {"B": "### B\n\nnew \\1", "A": "### A\n\nnew"})
    between = "### A\n\nnew\n\n### B\n\nnew \\1\n\n### C\n\nkept\n\n| x |"
    assert page.read_text() == f"before\n{BEGIN}\n\n{between}\n\n{END}\nafter\n### D\n"
