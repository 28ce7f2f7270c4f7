"""The small pictures of the page: where bars begin and end, and that nothing but numbers gets into them."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from irl_exp.analysis import bars
from irl_exp.analysis.bars import Axis, around


def parts(picture: str, tag: str) -> list[dict[str, str]]:
    """The attributes of all elements of a kind."""
    return [dict(found.attrib) for found in ElementTree.fromstring(picture).iter(tag)]


def percent(text: str) -> float:
    return float(text.removesuffix("%"))


def test_bars_begin_at_zero_and_are_as_long_as_their_numbers() -> None:
    base, tuned = parts(bars.frequencies(0.4, 0.1, Axis(0.0, 0.5)), "rect")
    assert (base["class"], percent(base["x"]), percent(base["width"])) == ("base", 0.0, 80.0)
    assert (tuned["class"], percent(tuned["x"]), percent(tuned["width"])) == ("tuned", 0.0, 20.0)


def test_a_negative_mean_lies_to_the_left_of_zero() -> None:
    axis = around([-1.0, 1.0])
    below, above = parts(bars.frequencies(-1.0, 1.0, axis), "rect")
    assert percent(below["x"]) + percent(below["width"]) == pytest.approx(percent(above["x"]), abs=0.2)
    assert percent(above["x"]) == pytest.approx(50.0)


def test_an_effect_has_its_interval_and_the_band_of_all_rewards() -> None:
    picture = bars.effect(-0.5, -0.6, -0.4, Axis(-1.0, 1.0), (-0.8, -0.2), certified=True)
    (band,), (dot,) = parts(picture, "rect"), parts(picture, "circle")
    line = next(found for found in parts(picture, "line") if "interval" in found["class"])
    assert band["class"] == "band charges"
    assert (percent(band["x"]), percent(band["width"])) == (10.0, 30.0)
    assert (percent(line["x1"]), percent(dot["cx"]), percent(line["x2"])) == (20.0, 25.0, 30.0)


def test_a_band_of_both_signs_is_an_outline_and_without_a_bound_there_is_none() -> None:
    axis = Axis(-1.0, 1.0)
    (band,) = parts(bars.effect(0.5, 0.4, 0.6, axis, (-0.2, 0.9), certified=False), "rect")
    assert band["class"] == "band open"
    assert parts(bars.effect(0.5, 0.4, 0.6, axis, None, certified=False), "rect") == []


def test_chance_is_a_band_beside_the_measured_number() -> None:
    picture = bars.against_chance(0.85, (0.8, 0.9), (0.48, 0.52))
    (band,), (dot,) = parts(picture, "rect"), parts(picture, "circle")
    assert percent(band["x"]) < percent(dot["cx"]) - percent(band["width"])
    assert percent(dot["cx"]) == 75.0


def test_histograms_show_where_the_rewards_lie() -> None:
    world = np.random.default_rng(0)
    picture = bars.densities({"base": world.normal(-2, 0.5, 500), "tuned": world.normal(2, 0.5, 100)})
    tops = {}
    for polygon in parts(picture, "polygon"):
        points = [tuple(map(float, point.split(","))) for point in polygon["points"].split()]
        tops[polygon["class"]] = min(points, key=lambda point: point[1])
    assert tops["base"][0] < 50 < tops["tuned"][0]
    assert tops["tuned"][1] == pytest.approx(tops["base"][1], abs=30)  # of the same area, whatever their numbers


def test_rewards_that_are_all_alike_are_drawn_too() -> None:
    assert "nan" not in bars.densities({"base": np.zeros(5), "tuned": np.zeros(5)})
    assert "nan" not in bars.frequencies(0.0, 0.0, around([0.0, 0.0]))


def test_the_curve_has_a_point_a_statement_from_nothing_on() -> None:
    picture = bars.curve([0.3, 0.5, 0.45])
    points = parts(picture, "circle")
    assert [percent(point["cx"]) for point in points] == pytest.approx([33.33, 66.67, 100.0])
    assert [float(point["cy"]) for point in points] == pytest.approx([112.0, 80.0, 88.0])
    (line,) = parts(picture, "polyline")
    assert line["points"].startswith("0.00,100.00 ")


def test_ticks_of_a_long_curve_stay_few() -> None:
    for count in (1, 9, 20, 150):
        shown = re.findall(r'middle">(\d+)<', bars.curve([0.1] * count))
        assert 1 < len(shown) <= 12
        assert shown[0] == "0"
