"""One HTML file that shows a comparison: it opens from disk, without a server or network.

Style, script and data stand in the file itself; pictures lie beside it and are named relative to it.
Everything that comes from data is escaped here (tables), or becomes text by the script and nothing else
(gallery).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

from pisr_maskformer.visualization import curves
from pisr_maskformer.visualization.markup import script_json, text

FOLDER = Path(__file__).resolve().parent
KINDS = ("baseline", "pisr")  # of the sides, in the page's style


@dataclass(frozen=True)
class Table:
    """Cells as text or numbers; `gains`: columns called "gain…" hold gains. `words`: text that may break."""

    headings: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""
    gains: bool = False
    words: bool = False
    colors: Sequence[Sequence[int]] = ()  # of the rows, where they stand for classes

    def is_gain(self, column: int) -> bool:
        """Whether a column's numbers are gains, shown with their signs."""
        return self.gains and self.headings[column].startswith("gain")


@dataclass(frozen=True)
class Page:
    """What the page tells.

    images: {"index", "name", "width", "height", "pq" [baseline's, the other's] or None each, "delta" or None,
    "changed" 0..1, "classes", "boxes", "heat" (a class's name) or None, "pictures" kind -> file}.
    """

    title: str
    lead: str
    sides: Sequence[str]
    classes: Sequence[str]
    images: Sequence[Mapping[str, Any]]
    numbers: Sequence[tuple[str, float, float, float]] = ()  # name, baseline's, the other's, gain
    sections: Mapping[str, Sequence[Table]] = field(default_factory=dict)
    charts: Mapping[str, Mapping[str, curves.Curve]] = field(default_factory=dict)  # title -> kind -> curve


def render(page: Page) -> str:
    """The whole file."""
    sections = {**page.sections}
    body = [_section(title, "".join(map(table_html, tables))) for title, tables in sections.items()]
    titles = ["Gallery", *sections]
    if page.charts:
        body.insert(1 if body else 0, _section("Training", charts_html(page)))
        titles.insert(2 if sections else 1, "Training")
    links = "".join(
        f'<a href="#{"gallery-section" if title == "Gallery" else _anchor(title)}">{text(title)}</a>'
        for title in titles
    )
    return Template((FOLDER / "page.html").read_text(encoding="utf-8")).substitute(
        title=text(page.title),
        lead=text(page.lead),
        numbers="".join(number_html(*number) for number in page.numbers),
        links=links,
        sections="".join(body),
        style=(FOLDER / "page.css").read_text(encoding="utf-8"),
        script=(FOLDER / "page.js").read_text(encoding="utf-8"),
        data=script_json(
            {
                "sides": page.sides,
                "classes": page.classes,
                "images": page.images,
                "scored": any(value is not None for image in page.images for value in image["pq"]),
            }
        ),
    )


def signed(value: float) -> str:
    """A gain with its sign, ±0.0 where it rounds to nothing; a dash where there is none to tell."""
    if not math.isfinite(value):
        return "–"
    shown = f"{value:+.1f}"
    return "±0.0" if shown in ("+0.0", "-0.0") else shown.replace("-", "−")


def number_html(name: str, baseline: float, other: float, change: float) -> str:
    """A number that the page opens with; Δ itself has no values of its own sides (nan)."""
    values = f"<small>{baseline:.1f} → {other:.1f}</small>" if math.isfinite(baseline) else ""
    return (
        f'<div class="number"><span>{text(name)}</span>'
        f'<b class="{_verdict(change)}">{signed(change)}</b> {values}</div>'
    )


def table_html(table: Table) -> str:
    """The table in a frame that scrolls by itself, under its note."""
    head = "".join(f"<th scope='col'>{text(heading)}</th>" for heading in table.headings)
    rows = []
    for number, row in enumerate(table.rows):
        color = table.colors[number] if table.colors else None
        cells = [_cell(value, table.is_gain(i)) for i, value in enumerate(row)]
        if color is not None:
            red, green, blue = (int(channel) for channel in color)
            swatch = f'<span class="swatch" style="background:rgb({red} {green} {blue})"></span>'
            cells[0] = cells[0].replace("<td>", f"<td>{swatch}", 1)
        rows.append(f"<tr>{''.join(cells)}</tr>")
    note = f'<p class="note">{text(table.note)}</p>' if table.note else ""
    kind = ' class="words"' if table.words else ""
    return (
        f'{note}<div class="scroll" tabindex="0"><table{kind}><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(value: Any, is_gain: bool) -> str:
    if not isinstance(value, float):
        return f"<td>{text(value)}</td>"
    if is_gain:
        return f'<td class="{_verdict(value)}">{signed(value)}</td>'
    return f"<td>{value:.1f}</td>" if math.isfinite(value) else "<td>–</td>"


def _verdict(change: float) -> str:
    if not math.isfinite(change) or abs(change) < 0.05:  # what is shown as 0.0 has no colour
        return "same"
    return "gain" if change > 0 else "loss"


def charts_html(page: Page) -> str:
    """Every chart with a key of its lines."""
    parts = []
    for title, lines in page.charts.items():
        kinds = [kind for kind in KINDS if kind in lines]
        named = {page.sides[KINDS.index(kind)]: lines[kind] for kind in kinds}
        key = "".join(
            f'<span class="{kind}">— {text(name)}</span>' for kind, name in zip(kinds, named, strict=True)
        )
        parts.append(
            f'<figure class="chart"><figcaption>{text(title)}</figcaption><div class="key">{key}</div>'
            f"{curves.svg(named, title, kinds)}</figure>"
        )
    return f'<div class="charts">{"".join(parts)}</div>'


def _section(title: str, content: str) -> str:
    return f'<section id="{_anchor(title)}"><h2>{text(title)}</h2>{content}</section>'


def _anchor(title: str) -> str:
    return "".join(character if character.isalnum() else "-" for character in title.lower())
