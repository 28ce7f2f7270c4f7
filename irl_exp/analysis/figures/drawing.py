"""One style for all figures: readable without a caption, colour-blind safe, vector text in the PDF."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from cycler import cycler
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#7F7F7F"
"""After Okabe and Ito (2008): told apart with any common colour vision, and in print without colour."""

STYLE: dict[Any, Any] = {  # matplotlib's own type lists its 300 keys
    "axes.prop_cycle": cycler(color=[BLUE, ORANGE, GREEN, PURPLE, GREY]),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on all machines
    "font.size": 9,
    "image.cmap": "cividis",
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "pdf.fonttype": 42,  # text stays text
    "savefig.dpi": 200,
    "svg.hashsalt": "irl-exp",
}


@contextmanager
def style() -> Iterator[None]:
    """Figures are made and saved inside; the settings of matplotlib outside stay as they are."""
    with mpl.rc_context(STYLE):
        yield


class Picture(Figure):
    """A figure that knows how the panels that it has are to be read.

    Attributes:
        reading: sentences, each put there by the code that draws what it is about: none describes what is not drawn.
    """

    def __init__(self, width: float, height: float) -> None:
        super().__init__(figsize=(width, height))
        self.reading: list[str] = []


def new(width: float = 6.4, height: float = 4.0) -> Picture:
    """A figure in inches that belongs to no window and no global state."""
    return Picture(width, height)


def save(figure: Figure, folder: Path, name: str) -> bytes:
    """Write <name>.png and <name>.pdf, without the time of day in them.

    Returns:
        The figure as SVG with its text as outlines: the same picture on all machines.
    """
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    with style():
        _fix_layout(figure)
        figure.savefig(folder / f"{name}.png")
        figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None})
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _fix_layout(figure: Figure) -> None:
    """Lay the figure out once for all files: to find the layout anew for each takes as long as to draw it.

    The last digits of the solver change from time to time. They are cut off, so that the same figure gives the same
    bytes: names in PDF and SVG are digests of places.
    """
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")
    for axes in figure.axes:
        left, bottom, width, height = (round(value, 5) for value in axes.get_position().bounds)
        axes.set_position((left, bottom, width, height))
