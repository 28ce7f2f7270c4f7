"""The pages as a browser shows them: all figures, and nothing to complain about. Needs Chromium or Chrome."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import small_statements
import small_study
from conftest import Launched

from irl_exp.analysis import one_run, study

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
COUNT = """<script>addEventListener("load", () => {
  const shown = [...document.images].filter(image => image.complete && image.naturalWidth > 100).length
  document.title = `${shown} of ${document.images.length} figures, ${document.documentElement.scrollWidth} wide`
})</script></body>"""


TELL = """<script>addEventListener("load", () => {
  const place = part => part.getBoundingClientRect()
  const free = [...document.body.querySelectorAll("*")].filter(part => !part.closest(".table"))  // which scrolls inside
  const out = free.filter(part => place(part).right > innerWidth + 1)
  const drawn = [...document.querySelectorAll("svg.bars")].filter(picture => place(picture).width > 40)
  parent.postMessage(`${document.documentElement.scrollWidth} wide, ${out.length} out, ${drawn.length} drawn`, "*")
})</script></body>"""
FRAME = """<script>addEventListener("message", told => { document.title = told.data })</script>
<iframe src="page.html" style="border: 0; width: WIDTHpx; height: 900px"></iframe>"""
"""A window of a browser is never as narrow as a telephone; a frame is."""
needs_browser = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium or Chrome on this machine")


def opened(page: Path, folder: Path, *, width: int) -> subprocess.CompletedProcess[str]:
    """What a browser with a window of this width makes of a page, and what it says."""
    command = [str(BROWSER), *QUIET, f"--user-data-dir={folder / 'profile'}", f"--window-size={width},800"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=10000", "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@needs_browser
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_of_one_run_fits_a_desk_and_a_telephone(tmp_path: Path, width: int) -> None:
    launch = small_study.write(tmp_path / "launch", [small_study.Made()])
    long = small_statements.statement("averylongwordwithoutanybreak" * 3, wording="says it with a longword" * 20)
    small_statements.write(launch / "0", [*small_statements.STATEMENTS, long])
    page = one_run.render(study.read(launch))
    (tmp_path / "page.html").write_text(page.replace("</body>", TELL), encoding="utf-8")
    (tmp_path / "frame.html").write_text(FRAME.replace("WIDTH", str(width)), encoding="utf-8")
    done = opened(tmp_path / "frame.html", tmp_path, width=1400)
    title = re.search(r"<title>(\d+) wide, (\d+) out, (\d+) drawn</title>", done.stdout)
    assert title is not None, done.stderr[-2000:]
    assert int(title[1]) <= width  # nothing to be scrolled sidewards
    assert int(title[2]) == 0
    assert int(title[3]) == page.count('class="bars"')
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []


@needs_browser
def test_a_browser_shows_all_figures_and_has_no_error(three_seeds: Launched, tmp_path: Path) -> None:
    page = three_seeds.folder / "report" / "index.html"
    text = page.read_text(encoding="utf-8")
    copy = tmp_path / "index.html"
    copy.write_text(text.replace("</body>", COUNT), encoding="utf-8")
    done = opened(copy, tmp_path, width=500)
    title = re.search(r"<title>(\d+) of (\d+) figures, (\d+) wide</title>", done.stdout)
    assert title is not None, done.stderr[-2000:]
    assert title[1] == title[2] == str(text.count("<img "))
    assert int(title[1]) > 8
    assert int(title[3]) <= 500  # nothing sticks out of a window as narrow as a browser makes it
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
