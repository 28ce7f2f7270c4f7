"""What a launch says while it works, on a terminal and in a file, and what it knows of the time to its end."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import small_study
from rich.console import Console as RichConsole

from irl_exp.launch import console as console_module
from irl_exp.launch import finish
from irl_exp.launch import forecast as forecast_module
from irl_exp.launch.console import Console
from irl_exp.launch.forecast import Forecast, Running, Work, about, recorded
from irl_exp.launch.log import Log
from irl_exp.machinery.runtime import Event
from irl_exp.report.cells import Outcome
from irl_exp.report.tables import Table

CHAIN = [Work("sft", "s", 60.0), Work("rlhf", "r", 80.0), Work("evaluate", "e", 10.0)]


class Clock:
    """Time as a test tells it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(console_module, "time", found)
    return found


def piped(jobs: int = 1, works: Sequence[Work] = CHAIN) -> Console:
    """A console whose output is a file."""
    found = Console(jobs)
    found.rich = RichConsole(file=io.StringIO(), width=160)
    found.forecast = Forecast(dict.fromkeys(range(jobs), works))
    return found


def said(console: Console) -> list[str]:
    file = console.rich.file
    assert isinstance(file, io.StringIO)
    return file.getvalue().splitlines()


# ---------------------------------------------------------------- in a file


def test_a_long_stage_says_that_it_runs_how_far_it_is_and_how_long_it_will_take(clock: Clock) -> None:
    """Nothing was said for the length of a stage: 20 minutes of rlhf on a slow day."""
    console = piped()
    console.show(Event(0, "sft", "computing"))
    for second in range(1, 101):
        clock.now += 1
        console.show(Event(0, "sft", "computing", second, 100))
        console._speak(clock.now)
    assert said(console) == [
        "... 0 of 3 stages done; sft 5 % after 5 s, about 2 min left; about 3 min to the end of all",
        "... 0 of 3 stages done; sft 35 % after 35 s, about 65 s left; about 3 min to the end of all",
        "... 0 of 3 stages done; sft 65 % after 65 s, about 35 s left; about 2 min to the end of all",
        "... 0 of 3 stages done; sft 95 % after 95 s, about 5 s left; about 2 min to the end of all",
    ]


def test_a_short_stage_has_its_one_line(clock: Clock) -> None:
    console = piped()
    console.show(Event(0, "sft", "computing"))
    clock.now += 4
    console._speak(clock.now)
    console.show(Event(0, "sft", "computed", seconds=4.0, note="done"))
    clock.now += 100
    console._speak(clock.now)
    assert said(console) == ["sft                    computed      4.0 s  done"]


@pytest.mark.parametrize("waits", [False, True])
def test_what_the_process_beside_has_just_made_is_computed_whoever_says_so_first(clock: Clock, waits: bool) -> None:
    """The job finds it in the store before the other process, which writes to a pipe, is heard."""
    console = piped()
    console.follow({-1: 0}, {-1: ["e"]})
    console.show(Event(-1, "evaluate", "waiting" if waits else "computing"))
    console.show(Event(0, "evaluate", "reused", seconds=9.0, note="5,250 completions"))
    console.show(Event(-1, "evaluate", "reused" if waits else "computed", seconds=9.0, note="5,250 completions"))
    word = "reused" if waits else "computed"
    ends = [line for line in said(console) if "completions" in line]
    assert ends == [f"evaluate               {word:<9}     9.0 s  5,250 completions"]


def test_a_stage_that_says_nothing_of_its_progress_is_told_by_what_it_took_before(clock: Clock) -> None:
    console = piped()
    console.show(Event(0, "rlhf", "computing"))
    clock.now += 20
    console._speak(clock.now)
    assert said(console) == ["... 0 of 3 stages done; rlhf after 20 s, about 60 s left; about 2 min to the end of all"]


def test_what_has_never_been_computed_is_not_guessed(clock: Clock) -> None:
    console = piped(works=[Work("sft", "s"), Work("rlhf", "r")])
    console.show(Event(0, "sft", "computing", 1, 10))
    clock.now += 6
    console._speak(clock.now)
    assert said(console) == ["... 0 of 2 stages done; sft 10 % after 6 s, about 55 s left"]


def test_a_launch_of_many_hours_does_not_flood(clock: Clock) -> None:
    console = piped(jobs=1000)
    for second in range(10, 24 * 3600, 10):
        clock.now += 10
        if second % 3600 == 10:
            for job in range(8):
                console.show(Event(job, f"stage{second // 3600}", "computing"))
        console._speak(clock.now)
    lines = said(console)
    assert 40 < len(lines) < 80
    assert lines[0].startswith("... 0 of 1000 jobs done; job 0: stage0 after 20 s, job 1: stage0")
    assert all(", and 4 more" in line for line in lines)


def test_lines_of_a_file_have_no_control_characters(clock: Clock) -> None:
    console = piped()
    with console:
        console.show(Event(0, "sft", "computing", 1, 10))
        clock.now += 6
        console._speak(clock.now)
        console.say("done")
    console.tables([Table("T", ("a", "b"), (("1", "2"),))])
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", "\n".join(said(console)))


# ---------------------------------------------------------------- on a terminal


def test_on_a_terminal_bars_say_how_long_it_takes(clock: Clock) -> None:
    console = Console(2)
    console.bars.disable = False
    console.forecast = Forecast({0: CHAIN, 1: CHAIN}, workers=2)
    console.total = console.bars.add_task("2 jobs", total=2, left="")
    console.show(Event(0, "sft", "computing", 0, 10))
    console.show(Event(1, "sft", "waiting"))
    clock.now += 20
    console.show(Event(0, "sft", "computing", 5, 10))
    console._update(clock.now)
    told = {task.description: task.fields["left"] for task in console.bars.tasks}
    assert told["2 jobs"] == "about 2 min left"
    assert told["job 0: sft"] == "about 20 s left"
    assert "job 1: sft (waits)" in told


def test_a_line_of_bars_fits_into_80_columns(clock: Clock) -> None:
    shown = io.StringIO()
    console = Console(1000)
    console.bars.disable = False
    console.bars.add_task("job 999: benchmark_refinetuned", total=10, completed=5, left="about 2 h 10 min left")
    RichConsole(file=shown, width=84).print(console.bars)
    assert "job 999: benchmark_refinetuned" in shown.getvalue()
    assert "about 2 h 10 min left" in shown.getvalue()


# ---------------------------------------------------------------- the time to the end


def test_what_is_left_is_the_longest_job_or_the_work_shared_among_workers() -> None:
    jobs = {0: CHAIN, 1: [*CHAIN[:2], Work("evaluate", "f", 30.0)]}
    assert Forecast(jobs, workers=1).left(set(), {}, 0.0) == 60 + 80 + 10 + 30
    assert Forecast(jobs, workers=8).left(set(), {}, 0.0) == 60 + 80 + 30
    assert Forecast(jobs, workers=1).left({1}, {}, 0.0) == 60 + 80 + 10


def test_what_this_launch_has_measured_counts_more_than_what_was_recorded() -> None:
    found = Forecast({job: [Work("irl", f"i{job}", 1.0)] for job in range(3)})
    found.end(0, "irl", 7.0)
    assert found.left(set(), {}, 0.0) == 14.0


def test_what_runs_is_as_long_as_its_progress_says() -> None:
    found = Forecast({0: CHAIN})
    assert found.left(set(), {0: Running("sft", 0.0, done=25, total=100)}, 50.0) == 150 + 80 + 10
    assert found.left(set(), {0: Running("rlhf", 0.0)}, 100.0) == 60 + 10 + 10, "overdue"


def test_progress_of_a_part_is_not_that_of_the_stage() -> None:
    """evaluate judges one policy after the other, each from 0 to all."""
    assert Running("evaluate", 0.0, done=99, total=100).left(None, 10.0) is None
    assert Running("evaluate", 0.0, done=99, total=100).left(25.0, 10.0) == 15.0


def manifest(seconds: float, **config: object) -> dict[str, object]:
    return {"identity": {"config": config, "inputs": {"reference": "x"}}, "seconds": seconds}


def test_records_are_those_of_the_same_amount_of_work() -> None:
    before = [
        manifest(80.0, steps=100, learning_rate=0.1, seed=1),
        manifest(90.0, steps=100, learning_rate=0.1, seed=2),
        manifest(50.0, steps=100, learning_rate=0.5, seed=1),
        manifest(1.0, steps=2, learning_rate=0.1, seed=0),
    ]

    def of(**config: object) -> float | None:
        return recorded(before, {"config": config, "inputs": {"reference": "x"}})

    assert of(steps=100, learning_rate=0.1, seed=7) == 85.0
    assert of(steps=100, learning_rate=0.5, seed=7) == 50.0
    assert of(steps=2, learning_rate=0.5, seed=7) == 1.0
    assert of(steps=200, learning_rate=0.1, seed=1) is None


def test_a_damaged_manifest_says_nothing(tmp_path: Path) -> None:
    fields = {"format_version": 1, "digest": "a", "created": "", "files": {}, "info": {}, "provenance": {}}
    for name, text in {"a": json.dumps({**manifest(3.0), **fields}), "b": "{", "c": "{}", ".d.tmp-1": "{}"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(text)
    assert [found["seconds"] for found in forecast_module._some(tmp_path)] == [3.0]


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0, "5 s"), (42, "40 s"), (89, "90 s"), (91, "2 min"), (3500, "58 min"), (3600, "1 h"), (7800, "2 h 10 min")],
)
def test_a_duration_is_told_as_far_as_it_is_known(seconds: float, told: str) -> None:
    assert about(seconds) == f"about {told}"
    assert about(100_000) == "about 28 h"


# ---------------------------------------------------------------- launch.log


def test_the_log_has_every_line_with_its_time_also_those_before_the_folder_was_there(tmp_path: Path) -> None:
    console = Console(1, folder=tmp_path / "launch")
    console.say("before")
    assert not (tmp_path / "launch").exists(), "a launch that is refused leaves nothing"
    with console:
        console.show(Event(0, "sft", "computed", seconds=1.0, note="a note"))
        console.job_done(Outcome(0, "default", Path(), "failed", error="why"))
        console.tables([Table("A title", ("a", "b"), (("row", "0.500"),))])
    lines = (tmp_path / "launch" / "launch.log").read_text(encoding="utf-8").splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d($|  )", line) for line in lines)
    told = [line[27:] for line in lines]
    assert told[:2] == ["before", "sft                    computed      1.0 s  a note"]
    assert told[2] == "job 0 (default) FAILED: why"
    assert "A title" in told
    assert "row  0.500" in told


def test_each_line_is_there_as_soon_as_it_is_said(tmp_path: Path) -> None:
    with Console(1, folder=tmp_path) as console:
        console.say("now")
        assert "now" in (tmp_path / "launch.log").read_text()


def test_a_log_that_cannot_be_written_costs_no_run(tmp_path: Path) -> None:
    (tmp_path / "launch.log").mkdir()
    with Console(1, folder=tmp_path) as console:
        console.say("on")
    assert re.search("launch.log is not written any more .*directory", console.log.trouble)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk of Linux")
def test_a_full_disk_is_told_in_one_word() -> None:
    log = Log(Path("/dev"))
    log.path = Path("/dev/full")
    log.open()
    log.write("text")
    log.write("more")
    assert log.trouble == "/dev/full is not written any more (No space left on device)"


def test_a_thread_watches_and_ends_with_the_launch() -> None:
    with Console(1) as console:
        time.sleep(0.01)
        assert not console.stopped.is_set()
    assert console.stopped.is_set()


# ---------------------------------------------------------------- the end of a launch of another launcher


def test_the_end_under_any_launcher_has_verdict_words_and_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [small_study.Made(seed=seed, config={"reward": {"name": "length"}}) for seed in range(2)]
    folder = small_study.write(tmp_path / "launch", made)
    config = SimpleNamespace(report=False, store=SimpleNamespace(dir=tmp_path))
    monkeypatch.setattr(finish, "_recorded", lambda run: config)
    finish.finish_folder(folder)
    first = "RLHF on R* (length) took completions with R* < 0 from 50.0 %"
    for text in (capsys.readouterr().out, (folder / "launch.log").read_text(), (folder / "summary.md").read_text()):
        assert first in text
        assert "toxic completions" not in text
