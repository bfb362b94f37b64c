"""Rows and columns of a table over seeds: as Markdown for people, as CSV for programs.

A metric has its mean ± the sample's standard deviation over seeds, and its gain over the baseline's runs of
the same seeds with a confidence interval (paired.py). Δ sums the gains as the paper does.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pisr_maskformer.visualization.gains import ALWAYS, THIRD, gain
from tools.evidence.paired import CONFIDENCE, Difference, Spread, difference, spread
from tools.evidence.paper import METRICS as PAPER_METRICS
from tools.evidence.paper import ROWS as PAPER_ROWS
from tools.evidence.paper import delta as paper_delta
from tools.evidence.plan import FINAL, Row, TableSpec
from tools.evidence.results import METRIC_KEYS, Result

NOT_RUN = "not run"
NO_GAIN = ("chance", "recall")  # columns that are told, not compared
DELTA = "Δ"


@dataclass(frozen=True)
class TableRow:
    """What is known of a row; None where nothing is."""

    name: str
    title: str
    seeds: tuple[int, ...]
    values: Mapping[str, Spread]
    gains: Mapping[str, Difference]  # over the baseline, Δ among them; empty for the baseline itself


@dataclass(frozen=True)
class Table:
    """A table with everything that its forms show."""

    title: str
    metrics: tuple[str, ...]
    delta_of: tuple[str, ...]
    rows: tuple[TableRow, ...]
    baseline: str  # its title


def derived(results: Sequence[Result], rows: Mapping[str, Row]) -> list[Result]:
    """The results, and those of rows that are another row's model measured at another stage."""
    found = list(results)
    for row in rows.values():
        if row.of is not None and row.stage is not None:
            for result in results:
                stages = {FINAL: result.metrics, **result.stages}
                if result.row == row.of and row.stage in stages:
                    found.append(replace(result, row=row.name, metrics=stages[row.stage], stages={}))
    return found


def build_table(spec: TableSpec, results: Sequence[Result], titles: Mapping[str, str]) -> Table:
    """The table of `spec` from all results there are; rows without any stay empty."""
    results = [result for result in results if not spec.seeds or result.seed in spec.seeds]
    of_row = {
        name: {r.seed: r.metrics for r in results if r.row == name} for name in (*spec.rows, spec.baseline)
    }
    measured = [metrics for seeds in of_row.values() for metrics in seeds.values()]
    there = [name for name in METRIC_KEYS if any(name in metrics for metrics in measured)]
    metrics = spec.metrics or tuple(there)
    in_all = [name for name in (*ALWAYS, *THIRD) if measured and all(name in one for one in measured)]
    third = [name for name in THIRD if name in in_all][:1]
    delta_of = tuple(name for name in in_all if name in ALWAYS or name in third)
    if len(delta_of) < 2 or not set(delta_of) <= set(metrics):  # no sum of one gain, nor of gains not shown
        delta_of = ()
    baseline = of_row[spec.baseline]
    rows = []
    for name in spec.rows:
        mine = of_row[name]
        values = {m: spread({s: one[m] for s, one in mine.items() if m in one}) for m in metrics}
        gains: dict[str, Difference | None] = {}
        if name != spec.baseline:
            gains = {m: _difference(m, mine, baseline) for m in metrics if m.split(" ")[0] not in NO_GAIN}
            gains[DELTA] = _delta(mine, baseline, delta_of)
        rows.append(
            TableRow(
                name,
                titles.get(name, name),
                tuple(sorted(mine)),
                {m: value for m, value in values.items() if value is not None},
                {m: value for m, value in gains.items() if value is not None},
            )
        )
    return Table(spec.title, metrics, delta_of, tuple(rows), titles.get(spec.baseline, spec.baseline))


Measured = Mapping[int, Mapping[str, float]]  # seed -> metric -> value


def _difference(metric: str, mine: Measured, baseline: Measured) -> Difference | None:
    both = [{s: one[metric] for s, one in side.items() if metric in one} for side in (mine, baseline)]
    return difference(*both)


def _delta(mine: Measured, baseline: Measured, names: Sequence[str]) -> Difference | None:
    """Δ seed by seed: the same definition as everywhere (visualization.gains), over `names`."""
    shared = sorted(mine.keys() & baseline.keys()) if names else []
    sums = {
        seed: gain(*({name: side[seed][name] for name in names} for side in (baseline, mine))).value
        for seed in shared
    }
    return difference(sums, dict.fromkeys(shared, 0.0))


def markdown(table: Table) -> str:
    """The table with a title above, and what its numbers mean below."""
    papers = {row.name: PAPER_ROWS[row.name] for row in table.rows if row.name in PAPER_ROWS}
    with_paper = len(papers) > 1  # the host alone says nothing
    compared = [m for m in table.metrics if m.split(" ")[0] not in NO_GAIN]
    headings = ["row", "seeds"]
    for metric in table.metrics:
        headings += [metric, f"gain in {metric}"] if metric in compared else [metric]
    headings += [DELTA] if table.delta_of else []
    headings += ["paper: " + " / ".join(PAPER_METRICS) + f" ({DELTA})"] if with_paper else []
    lines = [headings, ["---"] * len(headings)]
    for row in table.rows:
        cells = [row.title, ", ".join(map(str, row.seeds)) or NOT_RUN]
        for metric in table.metrics:
            cells.append(_spread_text(row.values.get(metric)))
            if metric in compared:
                cells.append(_gain_text(row.gains.get(metric)))
        cells += [_gain_text(row.gains.get(DELTA))] if table.delta_of else []
        if with_paper:
            paper = papers.get(row.name)
            numbers = " / ".join(f"{value:.1f}" for value in paper.values) if paper else ""
            cells.append(f"{numbers} ({paper_delta(paper):+.1f})" if paper else "")
        lines.append(cells)
    body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return f"### {table.title}\n\n{body}\n\n{caption(table)}\n"


def caption(table: Table) -> str:
    """What the numbers of the table mean, in words."""
    told = (
        f"Mean ± sample standard deviation over seeds. Gains are over “{table.baseline}”, seed by seed, with "
        f"their {100 * CONFIDENCE:.0f}% confidence interval (Student's t); * where it leaves out 0."
    )
    if table.delta_of:
        told += f" {DELTA} is the sum of the gains in {' + '.join(table.delta_of)}."
    return told


def _spread_text(value: Spread | None) -> str:
    if value is None:
        return ""
    return f"{value.mean:.2f}" + ("" if math.isnan(value.deviation) else f" ± {value.deviation:.2f}")


def _gain_text(value: Difference | None) -> str:
    if value is None:
        return ""
    if math.isnan(value.low):
        return f"{value.mean:+.2f}"
    return f"{value.mean:+.2f} ({value.low:+.2f} … {value.high:+.2f})" + ("*" if value.is_clear else "")


def csv_text(tables: Sequence[Table]) -> str:
    """One line a table, row and metric, numbers with all their places; what is not known is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [
            "table",
            "row",
            "title",
            "metric",
            "seeds",
            "mean",
            "deviation",
            "gain",
            "low",
            "high",
            "pairs",
            "paper",
        ]
    )
    for table in tables:
        for row in table.rows:
            paper = (
                dict(zip(PAPER_METRICS, PAPER_ROWS[row.name].values, strict=True))
                if row.name in PAPER_ROWS
                else {}
            )
            for metric in (*table.metrics, *([DELTA] if table.delta_of else [])):
                value, change = row.values.get(metric), row.gains.get(metric)
                numbers = [
                    *(value[:2] if value else (math.nan, math.nan)),
                    *(change[:3] if change else (math.nan,) * 3),
                ]
                writer.writerow(
                    [table.title, row.name, row.title, metric, " ".join(map(str, row.seeds)) or NOT_RUN]
                    + ["" if math.isnan(number) else repr(number) for number in numbers]
                    + [change.pairs if change else "", paper.get(metric, "")]
                )
    return out.getvalue()
