"""Training curves as SVG: text, which follows the page's colours and needs no library to be seen."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pisr_maskformer.visualization.markup import text

WIDTH, HEIGHT = 560, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 30
MOST_POINTS = 400  # of a line; a screen shows no more


class Curve(NamedTuple):
    """Values over iterations, in ascending order."""

    steps: Sequence[int]
    values: Sequence[float]


def thinned(curve: Curve, most: int = MOST_POINTS) -> Curve:
    """At most about `most` points: means over equal runs of neighbours, the last point kept as it is."""
    count = len(curve.steps)
    if count <= most:
        return curve
    run = math.ceil(count / most)
    last = count - 1
    runs = [(start, min(start + run, last)) for start in range(0, last, run)]
    steps = [curve.steps[(start + stop) // 2] for start, stop in runs]
    values = [_mean(curve.values[start:stop]) for start, stop in runs]
    return Curve([*steps, curve.steps[-1]], [*values, curve.values[-1]])


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) in low..high; `low` alone when they are equal."""
    if not high > low:
        return [low]
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def svg(curves: Mapping[str, Curve], title: str, kinds: Sequence[str]) -> str:
    """One chart of the named curves; line number i has the class "line KIND_i" for the page's style.

    Single points are drawn as dots.
    """
    shown = {name: thinned(curve) for name, curve in curves.items()}
    steps = [step for curve in shown.values() for step in curve.steps]
    values = [value for curve in shown.values() for value in curve.values]
    x_range, y_range = (min(steps), max(steps)), (min(values), max(values))
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(title)}">',
        f"<title>{text(title)}</title>",
    ]
    for tick in ticks(*y_range):
        y = _y(tick, y_range)
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in ticks(*x_range):
        x = _x(tick, x_range)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 10}" text-anchor="middle">{tick:g}</text>')
    for kind, curve in zip(kinds, shown.values(), strict=True):
        points = [
            (_x(step, x_range), _y(value, y_range))
            for step, value in zip(curve.steps, curve.values, strict=True)
        ]
        parts += [
            f'<circle class="dot {text(kind)}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
            for x, y in points
            if len(points) <= 12
        ]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline class="line {text(kind)}" points="{line}"/>')
    return "".join([*parts, "</svg>"])


def _x(step: float, ends: tuple[float, float]) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * _share(step, ends)


def _y(value: float, ends: tuple[float, float]) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * _share(value, ends)


def _share(value: float, ends: tuple[float, float]) -> float:
    """Where a value lies between the ends, 0..1; the middle when they are one."""
    low, high = ends
    return (value - low) / (high - low) if high > low else 0.5
