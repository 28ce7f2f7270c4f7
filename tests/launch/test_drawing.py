"""Processes that write the files of figures: the same files, and an error that reaches the launch."""

from __future__ import annotations

from pathlib import Path

import pytest

from irl_exp.analysis import report
from irl_exp.analysis.figures import drawing
from irl_exp.launch.finish import _on_all_cores


def figure(text: str) -> drawing.Picture:
    with drawing.style():
        made = drawing.new()
        axes = made.add_subplot(title=text)
        axes.plot([0, 1], [1, 0])
        axes.xaxis.set_major_formatter(lambda value, place: f"{value:.0%}")  # no pickle takes it
    return made


def test_other_processes_write_the_same_files(tmp_path: Path) -> None:
    names = ("one", "two", "three")
    with report.at_once() as save:
        alone = [save(figure(name), tmp_path / "alone", name)() for name in names]
    with _on_all_cores() as save:
        waiting = [save(figure(name), tmp_path / "others", name) for name in names]
        assert [image() for image in waiting] == alone
    files = [sorted((tmp_path / name).iterdir()) for name in ("alone", "others")]
    assert [[path.name for path in some] for some in files] == [
        sorted(f"{n}.{k}" for n in names for k in ("pdf", "png"))
    ] * 2
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]


def test_what_cannot_be_written_is_an_error_of_the_report(tmp_path: Path) -> None:
    (tmp_path / "one.pdf").mkdir()
    with _on_all_cores() as save:
        waiting = [save(figure(name), tmp_path, name) for name in ("one", "two")]
        with pytest.raises(IsADirectoryError, match=r"one\.pdf"):
            waiting[0]()
        assert waiting[1]().startswith(b"<?xml")
