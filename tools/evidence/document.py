"""All that is written of a plan: its tables, how its runs came about, and the same inside docs/evidence.md.

In a document, what stands between these two lines is made from plans/NAME.yaml and docs/evidence/NAME/:

    <!-- tables: NAME -->
    <!-- end of NAME -->
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from mask_former.atomic_write import replace_file
from mask_former.errors import InputError
from tools._path import ROOT
from tools.evidence.paper import ROWS as PAPER_ROWS
from tools.evidence.paper import TABLES as PAPER_TABLES
from tools.evidence.plan import Plan, TableSpec, read_plan
from tools.evidence.results import Result, read_all
from tools.evidence.tables import NOT_RUN, Table, build_table, derived, markdown

MARKED = re.compile(r"(<!-- tables: (?P<name>[\w.-]+) -->\n).*?(<!-- end of (?P=name) -->)", re.DOTALL)
NOTHING = "Nothing of this has been run yet.\n"
SHOWN_MOMENTS = 4


def tables_of(plan: Plan | None, results: Sequence[Result], baseline: str) -> list[Table]:
    """The plan's tables; without one those of the paper that any result is of, and one of all other rows."""
    if plan is not None:
        titles = {row.name: row.title for row in plan.rows.values()}
        found = derived(results, plan.rows)
        return [build_table(spec, found, titles) for spec in plan.tables]
    names = list(dict.fromkeys(result.row for result in results))
    specs = []
    for title, rows in PAPER_TABLES.items():
        if any(name in names and name != "baseline" for name in rows):
            specs.append(TableSpec(title, tuple(rows), baseline))
    others = [name for name in names if name not in PAPER_ROWS]
    if others or not specs:
        first = [baseline] if baseline not in others else []
        specs.append(TableSpec("Other rows" if specs else "All rows", (*first, *others), baseline))
    return [
        build_table(spec, results, {name: row.title for name, row in PAPER_ROWS.items()}) for spec in specs
    ]


def text_of(
    tables: Iterable[Table],
    results: Sequence[Result],
    unfinished: Mapping[str, str],
    titles: Mapping[str, str],
) -> str:
    """Tables, what was left out, the residual branches, the diagnosis, and how the runs came about."""
    parts = [markdown(table) for table in tables]
    if unfinished:
        parts.append("Left out: " + "; ".join(f"{name} ({why})" for name, why in unfinished.items()) + ".\n")
    more = (residuals_text(results, titles), diagnosis_text(results, titles), _made_text(results))
    return "\n".join(parts + [text for text in more if text])


def residuals_text(results: Sequence[Result], titles: Mapping[str, str]) -> str:
    """Size of the residual branches relative to what they are added to, over time; mean over seeds."""
    rows = {}
    for name in dict.fromkeys(result.row for result in results):
        for branch in ("pixel_residual", "query_residual"):
            curves = [r.residuals[branch] for r in results if r.row == name and branch in r.residuals]
            if curves:
                kept = min(len(curve) for curve in curves)
                places = sorted({round((kept - 1) * p / (SHOWN_MOMENTS - 1)) for p in range(SHOWN_MOMENTS)})
                cells = [f"{fmean(c[p][1] for c in curves):.3f} (at {curves[0][p][0]})" for p in places]
                rows[f"{titles.get(name, name)}, {branch.split('_')[0]}"] = cells
    if not rows:
        return ""
    width = max(len(cells) for cells in rows.values())
    head = ["residual branch", "relative size (at iteration)", *[""] * (width - 1)]
    return _plain_table(head, [[name, *cells, *[""] * (width - len(cells))] for name, cells in rows.items()])


def diagnosis_text(results: Sequence[Result], titles: Mapping[str, str]) -> str:
    """The numbers of diagnosis.py, a column a row of the plan that is probed; mean over seeds."""
    probed = [result for result in results if result.diagnosis]
    rows = list(dict.fromkeys(result.row for result in probed))
    names = list(dict.fromkeys(name for result in probed for name in result.diagnosis))
    lines = []
    for name in names:
        values = [[r.diagnosis[name] for r in probed if r.row == row and name in r.diagnosis] for row in rows]
        lines.append([name, *(f"{fmean(of_row):.3f}" if of_row else "–" for of_row in values)])
    return _plain_table(["diagnosis", *(titles.get(row, row) for row in rows)], lines) if lines else ""


def _plain_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    whole = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in whole) + "\n"


def _made_text(results: Sequence[Result]) -> str:
    """Revisions, machines, dates and one of the commands of the runs."""
    if not results:
        return ""

    def all_of(key: str) -> str:
        return ", ".join(sorted({str(r.made[key]) for r in results if r.made.get(key)})) or "unknown"

    revisions = sorted({_revision(result) for result in results})
    iterations = ", ".join(map(str, sorted({result.iterations for result in results})))
    return (
        f"{len(results)} runs of {iterations} iterations; revision {', '.join(revisions)}; "
        f"torch {all_of('torch')}; "
        f"{all_of('machine')}; {all_of('date')}; data {all_of('data')}.\n"
    )


def _revision(result: Result) -> str:
    revision = str(result.made.get("revision") or "unknown")[:10]
    return revision + (" with uncommitted changes" if result.made.get("uncommitted") else "")


def section(name: str, root: Path = ROOT) -> str:
    """What stands in the document for a plan."""
    plan = read_plan(root / "plans" / f"{name}.yaml")
    kept = root / "docs" / "evidence" / name
    if not kept.is_dir() or not any(kept.glob("*.json")):
        return NOTHING
    results, _ = read_all([kept])
    titles = {row.name: row.title for row in plan.rows.values()}
    command = f"    python tools/experiment.py plans/{name}.yaml\n"
    done = {(result.row, result.seed) for result in results}
    begun = {row for row, _ in done}
    missing = {
        plan.folder(row.name, seed).name: NOT_RUN
        for row in plan.trained
        for seed in plan.seeds
        if row.name in begun and (row.name, seed) not in done
    }
    return f"{command}\n{text_of(tables_of(plan, results, ''), results, missing, titles)}"


def rebuilt(text: str, root: Path = ROOT) -> str:
    """The document with every marked part made anew; InputError when a mark lacks its end."""
    starts = re.findall(r"<!-- tables: ([\w.-]+) -->", text)
    made = MARKED.sub(lambda match: match[1] + "\n" + section(match["name"], root) + "\n" + match[3], text)
    whole = [match["name"] for match in MARKED.finditer(text)]
    if starts != whole:
        lost = next(name for name in starts if name not in whole)
        raise InputError(
            f"the mark `<!-- tables: {lost} -->` lacks its `<!-- end of {lost} -->`; add that line"
        )
    return made


def write_text(path: Path, text: str) -> None:
    with replace_file(path) as file:
        file.write(text.encode())
