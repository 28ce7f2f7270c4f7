"""The fault campaign, `python -m pytest -m faults`: it counts what was tried and what held, and makes the table of it.

A file of tests/faults/ is a subject: `SUBJECT` names it and `HELD` says what "held" means there. Each trial is a block

    with trials("SIGKILL while a stage computes", stage):
        ...

A trial that fails is noted and the next one is tried; the test fails at its end and names all that did not hold. The
table is in the terminal's summary; `--write-table` puts it into docs/reliability.md, a subject in the place of its
earlier table.
"""

from __future__ import annotations

import os
import platform
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # of the folder of the campaign, which is no package
    from conftest import Launcher
    from undisturbed import Undisturbed

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- table of the campaign -->", "<!-- end of the table -->"
SUBJECT, TRIAL = "subject of the campaign", "trial of the campaign"


# --------------------------------------------------------------------------------------------- in a test


@dataclass
class Trials:
    """What one test has tried; `held` stays in the reports of the test, so it reaches the process that shows them."""

    item: pytest.Item
    lost: list[str] = field(default_factory=list)

    @contextmanager
    def __call__(self, tried: str, detail: object = "") -> Iterator[None]:
        """One trial of the row `tried`; `detail` tells it from the others of the row."""
        try:
            yield
        except pytest.skip.Exception as skipped:
            self._note(tried, "not tried", str(skipped))
        except (Exception, pytest.fail.Exception) as error:
            self._note(tried, "lost", f"{detail}: {_told(error)}" if str(detail) else _told(error))
            self.lost.append(f"{tried} [{detail}]\n{traceback.format_exc()}")
        else:
            self._note(tried, "held", "")

    def _note(self, tried: str, end: str, why: str) -> None:
        self.item.user_properties.append((TRIAL, (tried, end, why)))


def _told(error: BaseException) -> str:
    """The first line of an error, short enough for a cell."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if len(text) < 160 else text[:157] + "..."


@pytest.fixture
def trials(request: pytest.FixtureRequest) -> Trials:
    """`with trials(row, detail):` around each trial."""
    found = Trials(request.node)
    request.node.stash[_of_item] = found
    return found


_of_item = pytest.StashKey[Trials]()


@pytest.fixture(scope="session")
def undisturbed(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The whole chain, once, in an empty folder, with nothing happening to it."""
    from undisturbed import COMMAND, Undisturbed

    return Undisturbed.of(launcher(tmp_path_factory.mktemp("undisturbed"), *COMMAND))


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """A test whose trials did not all hold fails, once all of them were tried."""
    result = yield
    found = pyfuncitem.stash.get(_of_item, None)
    if found is not None and found.lost:
        pytest.fail("\n".join([f"{len(found.lost)} did not hold", *found.lost]), pytrace=False)
    return result  # type: ignore[return-value]


def pytest_itemcollected(item: pytest.Item) -> None:
    """The subject goes with the reports of its tests, which may travel to another process."""
    module: Any = getattr(item, "module", None)
    if hasattr(module, "HELD"):
        item.user_properties.append((SUBJECT, (module.SUBJECT, " ".join(module.HELD.split()))))


# ---------------------------------------------------------------------------------------------- the table


@dataclass
class Row:
    """All trials of one kind."""

    tried: str
    held: int = 0
    lost: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def times(self) -> int:
        return self.held + len(self.lost)

    def cells(self) -> tuple[str, ...]:
        """tried, times, held, and what is to be said of the others."""
        told = [*dict.fromkeys(self.lost), *(f"not tried: {why}" for why in dict.fromkeys(self.skipped))]
        return self.tried, str(self.times), str(self.held), "; ".join(told)


@dataclass
class Subject:
    """The rows of one file, in the order of its tests."""

    held: str
    rows: dict[str, Row] = field(default_factory=dict)

    def markdown(self, name: str) -> str:
        lines = [("tried", "times", "held", "what did not"), ("---", "---:", "---:", "---")]
        lines += [row.cells() for row in self.rows.values()]  # type: ignore[misc]
        table = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
        times, held = sum(row.times for row in self.rows.values()), sum(row.held for row in self.rows.values())
        head = f"{times:,} trials, {held:,} held, of {_machine()}."
        return "\n".join([f"### {name}", "", head, "", f"*Held* means: {self.held}", "", *table])


class Campaign:
    """Collects the reports of all tests, in the process that shows them."""

    def __init__(self) -> None:
        self.reports: dict[str, pytest.TestReport] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if SUBJECT in dict(report.user_properties) and (report.when == "call" or not report.passed):
            self.reports[report.nodeid] = report

    @property
    def subjects(self) -> Mapping[str, Subject]:
        found: dict[str, Subject] = {}
        for report in sorted(self.reports.values(), key=lambda report: (report.location[0], report.location[1] or 0)):
            name, held = dict(report.user_properties)[SUBJECT]  # type: ignore[misc]
            _add(found.setdefault(name, Subject(held)), report)
        return found

    def sections(self) -> dict[str, str]:
        """The table of each subject."""
        return {name: subject.markdown(name) for name, subject in self.subjects.items()}

    def pytest_terminal_summary(self, terminalreporter: Any, config: pytest.Config) -> None:
        if not self.reports:
            return
        terminalreporter.section("what was tried and what held")
        terminalreporter.write_line("\n\n".join(self.sections().values()))
        if config.getoption("--write-table"):
            write(PAGE, self.sections())
            terminalreporter.write_line(f"written: {', '.join(self.sections())} in {PAGE}")


def _add(subject: Subject, report: pytest.TestReport) -> None:
    """The trials of one test; one that failed outside of them counts as a trial that did not hold."""
    found = [value for name, value in report.user_properties if name == TRIAL]
    for tried, end, why in found:
        row = subject.rows.setdefault(tried, Row(tried))
        if end == "held":
            row.held += 1
        else:
            (row.lost if end == "lost" else row.skipped).append(why)
    name = report.location[2].removeprefix("test_").replace("_", " ")
    if report.skipped:
        reason: Any = report.longrepr
        subject.rows.setdefault(name, Row(name)).skipped.append(str(reason[-1]).removeprefix("Skipped: "))
    elif report.failed and not any(end == "lost" for _, end, _ in found):
        row, why = subject.rows.setdefault(name, Row(name)), report.longreprtext.splitlines()[-1]
        (row.lost if report.when == "call" else row.skipped).append(_told(Exception(why)))


def _machine() -> str:
    """State of the code and the machine, as far as a result may depend on them."""
    import torch

    from irl_exp.launch.obtain import source_digest

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
    user = "root" if hasattr(os, "geteuid") and os.geteuid() == 0 else "a user without rights"
    python = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"the code `{source_digest()}` as {user} on {platform.system()}, {cores} cores, {gpu}, {python}"


def write(page: Path, sections: Mapping[str, str]) -> None:
    """Put these tables between the two marks of a page, each in the place of an earlier one of its subject."""
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    earlier, end, after = rest.partition(END)
    assert begin, f"{page} has no {BEGIN}"
    assert end, f"{page} has no {END}"
    found = {name: f"### {name}\n{body.rstrip()}" for name, body in _SECTION.findall(earlier)}
    merged = "\n\n".join(section for _, section in sorted({**found, **sections}.items()))
    page.write_text(f"{before}{BEGIN}\n\n{merged}\n\n{END}{after}", encoding="utf-8")


_SECTION = re.compile(r"^### (.*)\n((?:(?!### ).*\n?)*)", re.MULTILINE)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--write-table`."""
    group = parser.getgroup("faults")
    group.addoption("--write-table", action="store_true", help="of the fault campaign: docs/reliability.md")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Campaign(), "campaign of faults")
