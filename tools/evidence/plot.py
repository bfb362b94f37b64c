"""The gains of a table as an SVG picture: a panel a metric, a line a row, the interval around the mean."""

import math
from collections.abc import Sequence
from html import escape

from pisr_maskformer.visualization.curves import ticks
from tools.evidence.paired import Difference
from tools.evidence.tables import DELTA, NO_GAIN, NOT_RUN, Table

LABELS, PANEL, GAP = 390, 190, 24  # widths in pixels
TOP, ROW, BOTTOM = 62, 24, 30  # heights
INK, RULE = "#222222", "#cccccc"
GAIN, LOSS, UNCLEAR = "#0b6e4f", "#b3261e", "#8a8a8a"  # clear ones: 0 lies outside the interval


def plot(tables: Sequence[Table]) -> str:
    """All tables below each other, as one SVG of its own."""
    parts, top, width = [], 0, 0
    for table in tables:
        metrics = [m for m in table.metrics if m.split(" ")[0] not in NO_GAIN]
        metrics += [DELTA] if table.delta_of else []
        parts.append(f'<g transform="translate(0 {top})">{_table(table, metrics)}</g>')
        top += _height(table)
        width = max(width, LABELS + len(metrics) * (PANEL + GAP))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top}" width="{width}" height="{top}" '
        f'font-family="sans-serif" font-size="12" fill="{INK}">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )


def _height(table: Table) -> int:
    return TOP + ROW * len(table.rows) + BOTTOM


def _table(table: Table, metrics: Sequence[str]) -> str:
    parts = [f'<text x="8" y="20" font-size="14" font-weight="bold">{escape(table.title)}</text>']
    for place, row in enumerate(table.rows):
        state = "" if row.seeds else f" ({NOT_RUN})"
        parts.append(f'<text x="8" y="{_y(place) + 4}">{escape(row.title + state)}</text>')
    for place, metric in enumerate(metrics):
        gains = [row.gains.get(metric) for row in table.rows]
        parts.append(
            _panel(f"gain in {metric}" if metric != DELTA else DELTA, gains, LABELS + place * (PANEL + GAP))
        )
    return "".join(parts)


def _y(place: int) -> int:
    return TOP + ROW * place + ROW // 2


def _panel(title: str, gains: Sequence[Difference | None], left: int) -> str:
    ends = [end for one in gains if one for end in one[:3] if math.isfinite(end)]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    bottom = TOP + ROW * len(gains)
    parts = [f'<text x="{left + PANEL / 2}" y="{TOP - 12}" text-anchor="middle">{escape(title)}</text>']
    if low == high:
        return "".join(parts)

    def x(value: float) -> float:
        return round(left + PANEL * (value - low) / (high - low), 1)

    for tick in ticks(low, high):
        parts.append(f'<line x1="{x(tick)}" x2="{x(tick)}" y1="{TOP}" y2="{bottom}" stroke="{RULE}"/>')
        parts.append(f'<text x="{x(tick)}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<line x1="{x(0)}" x2="{x(0)}" y1="{TOP}" y2="{bottom}" stroke="{INK}"/>')
    for place, one in enumerate(gains):
        if one is None:
            continue
        y, colour = _y(place), UNCLEAR
        if one.is_clear:
            colour = GAIN if one.mean > 0 else LOSS
        if math.isfinite(one.low):
            place_of = f'x1="{x(one.low)}" x2="{x(one.high)}" y1="{y}" y2="{y}"'
            parts.append(f'<line {place_of} stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<circle cx="{x(one.mean)}" cy="{y}" r="4" fill="{colour}"/>')
    return "".join(parts)
