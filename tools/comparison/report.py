"""Tables, sheets of both ends, and the page, from the records of all images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.catalog import Metadata

from mask_former.atomic_write import replace_file
from mask_former.evaluation.metrics_file import write_json
from pisr_maskformer.visualization.gains import Gain, gain
from pisr_maskformer.visualization.page import Page, Table, render, signed
from tools.comparison.inputs import Inputs
from tools.comparison.journal import Journal
from tools.comparison.pictures import end_sheet, write_jpeg
from tools.comparison.runs import config_difference, provenance, training_curves
from tools.comparison.scores import SIDES, Classes, instance_precision, summarise_side
from tools.comparison.sources import ModelSource, SavedSource

METRICS_FILE, TABLE_FILE, PAGE_FILE = "metrics.json", "metrics.md", "index.html"
REPORT_FILES = (METRICS_FILE, TABLE_FILE, PAGE_FILE, "gains.jpg", "losses.jpg", "most_changed.jpg")
SIDE_TITLES = ("baseline", "PISR")
END = 6  # panels on the sheet of each end
ORDER = ("PQ", "SQ", "RQ", "PQ_th", "PQ_st", "mIoU", "AP")


@dataclass(frozen=True)
class Results:
    """Both sides' metrics over all images, name -> 0..100, and name -> float64 C of every class."""

    summary: dict[str, dict[str, float]]
    per_class: dict[str, dict[str, np.ndarray]]
    total: Gain
    notes: tuple[str, ...]  # how the numbers came about

    @property
    def metrics(self) -> list[str]:
        """The names that both sides have, in the order of the tables."""
        return [name for name in ORDER if all(name in self.summary[side] for side in SIDES)]


def results(
    records: Sequence[Mapping[str, Any]], journal: Journal, classes: Classes, modes: Mapping[str, bool]
) -> Results:
    """`modes`: "panoptic" (PQ), "from_scores" (mIoU of the semantic scores), "instances" (AP)."""
    summary, per_class = {}, {}
    for side in SIDES:
        summary[side], per_class[side] = summarise_side(records, side, classes, modes["panoptic"])
        if modes["instances"]:
            precision = instance_precision(journal.instances(), side, classes)
            summary[side]["AP"], per_class[side]["AP"] = precision
    total = gain(summary["baseline"], summary["pisr"])
    notes = [f"{total.definition()}; {len(records)} images."]
    if not modes["panoptic"]:
        notes.append("No PQ: the ground truth is semantic.")
    if not modes["from_scores"]:
        notes.append("mIoU is that of the panoptic maps: both sides' semantic scores are not to be had.")
    if not modes["instances"]:
        notes.append("No AP: it needs panoptic ground truth and both models' instances with their scores.")
    return Results(summary, per_class, total, tuple(notes))


def summary_table(found: Results) -> Table:
    """A row a metric, and Δ."""
    rows: list[list[Any]] = []
    for name in found.metrics:
        before, after = (found.summary[side][name] for side in SIDES)
        rows.append([name, before, after, after - before])
    rows.append(["Δ", float("nan"), float("nan"), found.total.value])
    return Table(["", *SIDE_TITLES, "gain"], rows, note=" ".join(found.notes), gains=True)


def class_table(found: Results, metadata: Metadata) -> Table:
    """A row for each class that anything is known about, by the gain in the first metric, largest first."""
    names = [name for name in ("PQ", "IoU", "AP") if name in found.per_class["baseline"]]
    values = np.stack([found.per_class[side][name] for name in names for side in SIDES])
    known = np.flatnonzero(np.isfinite(values).any(axis=0))
    gains = values[1::2] - values[::2]
    changes = np.nan_to_num(gains[0])
    order = known[np.argsort(-changes[known], kind="stable")].tolist()
    headings = ["class"]
    for name in names:
        headings += [*(f"{name} {title}" for title in SIDE_TITLES), f"gain in {name}"]
    cells = np.stack([values[::2], values[1::2], gains], axis=1).reshape(3 * len(names), -1)
    rows = [[metadata.stuff_classes[c], *cells[:, c].tolist()] for c in order]
    note = f"{len(order)} of {values.shape[1]} classes"
    note += "; the others are neither there nor predicted." if len(order) < values.shape[1] else "."
    return Table(headings, rows, note, gains=True, colors=[metadata.stuff_colors[c] for c in order])


def write_report(
    output: Path,
    records: Sequence[Mapping[str, Any]],
    inputs: Inputs,
    sources: Mapping[str, ModelSource | SavedSource],
    found: Results | None,
    metadata: Metadata,
) -> None:
    """metrics.json, metrics.md, gains.jpg, losses.jpg (or most_changed.jpg) and index.html, each whole."""
    tables = [] if found is None else [summary_table(found), class_table(found, metadata)]
    if found is not None:
        write_json(_metrics_json(found, metadata), output / METRICS_FILE)
        _write_text(output / TABLE_FILE, "\n\n".join(map(markdown, tables)) + "\n")
    for name, ends, heading in ends_of(records):
        write_jpeg(output / f"{name}.jpg", end_sheet(output, ends, heading))
    _write_text(output / PAGE_FILE, render(_page(records, inputs, sources, found, tables, metadata)))


def ends_of(
    records: Sequence[Mapping[str, Any]],
) -> list[tuple[str, list[Mapping[str, Any]], str]]:
    """(file's name, records, heading) of both ends of the ranking; without PQ, of what changed most."""
    ranked = sorted(
        (record for record in records if delta(record) is not None),
        key=lambda record: (-(delta(record) or 0.0), record["index"]),
    )
    if not ranked:
        changed = sorted(records, key=lambda record: (-record["changed"], record["index"]))[:END]
        return [("most_changed", changed, "The most changed images")] if changed else []
    gains = [record for record in ranked if (delta(record) or 0) > 0][:END]
    losses = [record for record in ranked if (delta(record) or 0) < 0][::-1][:END]
    both = [
        ("gains", gains, "The largest gains in PQ of one image"),
        ("losses", losses, "The largest losses in PQ of one image"),
    ]
    return [end for end in both if end[1]]


def delta(record: Mapping[str, Any]) -> float | None:
    """ΔPQ of one image; None where either side has no PQ."""
    pq = record.get("pq") or {}
    before, after = pq.get("baseline"), pq.get("pisr")
    return None if before is None or after is None else after - before


def markdown(table: Table) -> str:
    """The table as Markdown, numbers with one place, gains with their signs."""

    def cell(value: Any, is_gain: bool) -> str:
        if isinstance(value, float):
            if is_gain:
                return signed(value)
            return f"{value:.1f}" if np.isfinite(value) else "–"
        return " ".join(escape(str(value), quote=False).replace("|", "\\|").split())

    lines = [table.headings, ["---"] * len(table.headings), *table.rows]
    is_gain = [table.is_gain(column) for column in range(len(table.headings))]
    body = "\n".join(f"| {' | '.join(map(cell, line, is_gain))} |" for line in lines)
    return f"{table.note}\n\n{body}" if table.note else body


def _metrics_json(found: Results, metadata: Metadata) -> dict[str, Any]:
    per_class = {
        name: {
            side: {key: float(values[c]) for key, values in found.per_class[side].items()} for side in SIDES
        }
        for c, name in enumerate(metadata.stuff_classes)
    }
    delta_of = {"value": found.total.value, "sum_of": list(found.total.metrics)}
    return {"delta": delta_of, **found.summary, "notes": list(found.notes), "per_class": per_class}


def _page(
    records: Sequence[Mapping[str, Any]],
    inputs: Inputs,
    sources: Mapping[str, ModelSource | SavedSource],
    found: Results | None,
    tables: Sequence[Table],
    metadata: Metadata,
) -> Page:
    sections: dict[str, Sequence[Table]] = {"Metrics": tables} if tables else {}
    numbers: list[tuple[str, float, float, float]] = []
    if found is not None:
        none = float("nan")
        numbers.append((f"Δ ({' + '.join(found.total.metrics)})", none, none, found.total.value))
        for name in found.total.metrics:
            before, after = (found.summary[side][name] for side in SIDES)
            numbers.append((name, before, after, after - before))
    sections["Configuration"] = [_config_table(sources)]
    sections["Provenance"] = [_provenance_table(sources, inputs)]
    lines = {side: training_curves(sources[side].run) for side in SIDES}
    titles = dict.fromkeys(title for side in SIDES for title in lines[side])
    charts = {title: {side: lines[side][title] for side in SIDES if title in lines[side]} for title in titles}
    return Page(
        title=f"{sources['baseline'].title} and {sources['pisr'].title} on {inputs.name}",
        lead=f"{len(records)} of {len(inputs.items)} images, {len(metadata.stuff_classes)} classes.",
        sides=SIDE_TITLES,
        classes=metadata.stuff_classes,
        images=[_image(record, metadata) for record in records],
        numbers=numbers,
        sections=sections,
        charts={
            title: chart for title, chart in charts.items() if any(len(c.steps) > 1 for c in chart.values())
        },
    )


def _image(record: Mapping[str, Any], metadata: Metadata) -> dict[str, Any]:
    pq = record.get("pq") or {}
    kept = ("index", "name", "width", "height", "changed", "classes", "boxes", "pictures")
    return {
        **{key: record[key] for key in kept},
        "pq": [pq.get(side) for side in SIDES],
        "delta": delta(record),
        "heat": None if record["heat"] is None else metadata.stuff_classes[record["heat"]],
    }


def _config_table(sources: Mapping[str, ModelSource | SavedSource]) -> Table:
    difference = config_difference(*(sources[side].config() for side in SIDES))
    if difference is None:
        return Table(
            ["key", *SIDE_TITLES], [], "Not known: one side has no configuration beside it.", words=True
        )
    note = (
        "What differs between the two configurations." if difference else "The configurations do not differ."
    )
    return Table(["key", *SIDE_TITLES], difference, note, words=True)


def _provenance_table(sources: Mapping[str, ModelSource | SavedSource], inputs: Inputs) -> Table:
    told = {
        side: {"predictions": sources[side].described(), **provenance(sources[side].run)} for side in SIDES
    }
    keys = dict.fromkeys(key for side in SIDES for key in told[side])
    rows = [[key, *(told[side].get(key, "not known") for side in SIDES)] for key in keys]
    return Table(["", *SIDE_TITLES], rows, f"Images: {inputs.name}.", words=True)


def _write_text(path: Path, content: str) -> None:
    with replace_file(path) as file:
        file.write(content.encode("utf-8", "replace"))
