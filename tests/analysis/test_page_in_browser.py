"""The page of a study as a browser shows it: all figures, and nothing to complain about. Needs Chromium or Chrome."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import Launched

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
COUNT = """<script>addEventListener("load", () => {
  const shown = [...document.images].filter(image => image.complete && image.naturalWidth > 100).length
  document.title = `${shown} of ${document.images.length} figures, ${document.documentElement.scrollWidth} wide`
})</script></body>"""


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium or Chrome on this machine")
def test_a_browser_shows_all_figures_and_has_no_error(three_seeds: Launched, tmp_path: Path) -> None:
    page = three_seeds.folder / "report" / "index.html"
    text = page.read_text(encoding="utf-8")
    copy = tmp_path / "index.html"
    copy.write_text(text.replace("</body>", COUNT), encoding="utf-8")
    command = [str(BROWSER), *QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=500,800"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=10000", "--dump-dom", copy.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    title = re.search(r"<title>(\d+) of (\d+) figures, (\d+) wide</title>", done.stdout)
    assert title is not None, done.stderr[-2000:]
    assert title[1] == title[2] == str(text.count("<img "))
    assert int(title[1]) > 8
    assert int(title[3]) <= 500  # nothing sticks out of a window as narrow as a browser makes it
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
