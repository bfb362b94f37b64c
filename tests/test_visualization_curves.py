"""Training curves: thinning, round ticks, and coordinates in the SVG."""

import re
from xml.etree import ElementTree

import pytest

from pisr_maskformer.visualization.curves import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Curve,
    svg,
    thinned,
    ticks,
)


def test_short_curves_stay_as_they_are():
    curve = Curve([1, 2, 3], [5.0, 4.0, 3.0])
    assert thinned(curve) is curve


def test_long_curves_become_means_and_keep_their_last_point():
    curve = Curve(list(range(10_001)), [float(step % 2) for step in range(10_001)])
    made = thinned(curve, most=100)
    assert len(made.steps) <= 102 and len(made.steps) == len(made.values)
    assert list(made.steps) == sorted(set(made.steps))
    assert made.steps[-1] == 10_000 and made.values[-1] == 0
    assert all(abs(value - 0.5) < 0.01 for value in made.values[:-2])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0.13, 0.42, [0.2, 0.3, 0.4]),
        (3, 3, [3]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_lines_span_the_frame():
    drawn = svg(
        {"a<b": Curve([0, 50], [1.0, 3.0]), "c": Curve([100], [2.0])}, 'PQ & "x"', ["baseline", "pisr"]
    )
    tree = ElementTree.fromstring(drawn)
    lines = {line.get("class"): line.get("points") for line in tree.iter("polyline")}
    start, end = [tuple(map(float, point.split(","))) for point in lines["line baseline"].split()]
    assert start == (LEFT, HEIGHT - BOTTOM) and end[1] == TOP
    assert end[0] == pytest.approx((LEFT + WIDTH - RIGHT) / 2, abs=0.1)
    assert lines["line pisr"] == f"{WIDTH - RIGHT:.1f},{(TOP + HEIGHT - BOTTOM) / 2:.1f}"
    assert len(list(tree.iter("circle"))) == 3
    assert re.search("nan|inf", drawn) is None


def test_a_constant_curve_lies_in_the_middle():
    tree = ElementTree.fromstring(svg({"a": Curve([0, 1], [2.0, 2.0])}, "t", ["pisr"]))
    points = next(tree.iter("polyline")).get("points")
    assert {point.split(",")[1] for point in points.split()} == {f"{(TOP + HEIGHT - BOTTOM) / 2:.1f}"}
