"""From run folders to tables over seeds: Markdown, CSV and a picture of the gains.

    python tools/ablation_table.py output/ablations/* --output output/tables
    python tools/ablation_table.py output/experiments/toy_relations --plan plans/toy_relations.yaml --output T
    python tools/ablation_table.py runs/* --output T --keep docs/evidence/NAME      # small files to commit
    python tools/ablation_table.py docs/evidence/NAME --plan plans/NAME.yaml --output T
    python tools/ablation_table.py --document docs/evidence.md       # its tables anew, from docs/evidence/

A run folder is called ROW_seedN; ROW is the name of a file in configs/ablations or of a row of the plan.
Gains are over the run of the same seed of the baseline. Runs that are not finished are named and left out.
`tables.md`, `tables.csv` and `tables.svg` go to the output folder.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import _path  # noqa: F401  (puts the repository's root on sys.path)
from mask_former.errors import InputError, run_cli
from tools.evidence.document import rebuilt, tables_of, text_of, write_text
from tools.evidence.plan import Plan, read_plan
from tools.evidence.plot import plot
from tools.evidence.results import keep, read_all
from tools.evidence.tables import csv_text
from tools.project import require_writable


def write_tables(
    runs: Sequence[Path], output: Path, *, plan: Plan | None, baseline: str, kept: Path | None
) -> str:
    """Write the three files, and the small ones to `kept`; returns the Markdown."""
    results, unfinished = read_all(runs)
    if not results and plan is None:
        said = "; ".join(f"{name}: {why}" for name, why in unfinished.items())
        raise InputError(f"no finished run to make a table of: {said}")
    tables = tables_of(plan, results, baseline)
    titles = {row.name: row.title for row in plan.rows.values()} if plan else {}
    text = text_of(tables, results, unfinished, titles)
    require_writable(output)
    write_text(output / "tables.md", text)
    write_text(output / "tables.csv", csv_text(tables))
    write_text(output / "tables.svg", plot(tables))
    if kept is not None:
        require_writable(kept)
        for result in results:
            keep(result, kept)
    return text


def rebuild_document(path: Path) -> None:
    """Make the document's tables anew; InputError when it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); check the path") from error
    write_text(path, rebuilt(text))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", type=Path, help="run folders, kept results, or folders of either")
    parser.add_argument("--output", type=Path, help="folder of the tables")
    parser.add_argument("--plan", help="a plan that tells rows, titles and tables")
    parser.add_argument("--baseline", default="baseline", help="without a plan: the row that gains are over")
    parser.add_argument("--keep", type=Path, help="also write the results as small JSON files here")
    parser.add_argument("--document", type=Path, help="a document whose marked tables are made anew")
    args = parser.parse_args(arguments)
    if args.document:
        rebuild_document(args.document)
    if not args.runs and args.document:
        return
    if not args.runs or not args.output:
        raise InputError("name run folders and --output FOLDER, or --document FILE; see --help")
    plan = read_plan(args.plan) if args.plan else None
    print(write_tables(args.runs, args.output, plan=plan, baseline=args.baseline, kept=args.keep), end="")


if __name__ == "__main__":
    sys.exit(run_cli(main))
