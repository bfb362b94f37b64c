"""Check every file of a data set before training does: images, labels, JSON, and whether they agree.

    python tools/validate_dataset.py --config-file configs/coco/maskformer_lite0.yaml
    python tools/validate_dataset.py --config-file F --split train --report report.json
    python tools/validate_dataset.py --images my/images --json my/train.json --pngs my/train_png

Prints what the data set holds, class by class, and what is wrong: errors, at which training or evaluation
would stop, then warnings and notes. It changes no file of the data set. Exit code 1 when there is an error.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from tabulate import tabulate
from tqdm import tqdm

import _path  # noqa: F401  (puts the repository's root on sys.path)
from mask_former.atomic_write import replace_file
from mask_former.data import require_same_classes
from mask_former.data.validation import (
    DataSetReport,
    Findings,
    Problem,
    validate_coco_panoptic,
    validate_registered,
)
from mask_former.data.validation.findings import LEVELS
from mask_former.data.validation.images import ImageReport
from mask_former.errors import InputError, run_cli
from tools.checks.machine import usable_cores
from tools.project import project_config

SPLITS = {"train": ("TRAIN",), "test": ("TEST",), "all": ("TRAIN", "TEST")}
PATHS = ("images", "json", "pngs")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--config-file", metavar="FILE", help="check the data sets of this configuration")
    parser.add_argument("--split", choices=SPLITS, default="all", help="of the configuration (default: all)")
    parser.add_argument("--images", metavar="FOLDER", help="instead of a configuration: the images,")
    parser.add_argument("--json", metavar="FILE", help="the JSON in COCO's panoptic format")
    parser.add_argument("--pngs", metavar="FOLDER", help="and the panoptic PNGs")
    parser.add_argument("--workers", type=int, default=usable_cores(), help="processes, as many as cores")
    parser.add_argument("--examples", type=int, default=3, help="problems shown of a kind (default: 3)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write all that is printed as JSON, too")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="configuration overrides")
    options = parser.parse_args(arguments)
    given = [name for name in PATHS if getattr(options, name)]
    if bool(options.config_file) == bool(given) or len(given) not in (0, len(PATHS)):
        raise InputError("name either --config-file or all of --images, --json and --pngs")
    if options.report and not options.report.absolute().parent.is_dir():
        where = f"--report {options.report}: there is no folder {options.report.parent}"
        raise InputError(f"{where}; name another file")
    if given and options.opts:
        raise InputError(f"{options.opts[0]}: KEY VALUE pairs change a configuration; name --config-file")
    for name in ("workers", "examples"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name} {getattr(options, name)}: use at least 1")
    return options


def validate_configured(cfg: CfgNode, split: str, findings: Findings, workers: int) -> list[DataSetReport]:
    """Check the data sets of a configuration, and that they fit it and each other."""
    names = list(dict.fromkeys(name for key in SPLITS[split] for name in cfg.DATASETS[key]))
    if not names:
        raise InputError(f"DATASETS.{' and .'.join(SPLITS[split])} name no data set; name one, or paths")
    reports = [
        validate_registered(name, findings, workers=workers, progress=partial(show_progress, name))
        for name in names
    ]
    for report in reports:
        findings.add(unfit_for_model(report, cfg))
    try:
        require_same_classes(names)
    except InputError as error:
        findings.add([Problem("error", "data sets of different classes", str(error))])
    findings.add(shared_images(reports))
    return reports


def unfit_for_model(report: DataSetReport, cfg: CfgNode) -> list[Problem]:
    """What of a data set does not fit the model's classes and queries."""
    problems = []
    classes, queries = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES
    if report.classes and len(report.classes) != classes:
        text = f"{report.name}: has {len(report.classes)} classes, the model {classes}"
        mend = f"set MODEL.SEM_SEG_HEAD.NUM_CLASSES {len(report.classes)}"
        problems.append(Problem("error", "number of classes", f"{text}; {mend}"))
    if report.most_segments > queries:
        text = f"{report.name}: an image has {report.most_segments} segments, but the model {queries} queries"
        mend = "the rest cannot be learnt; raise MODEL.MASK_FORMER.NUM_OBJECT_QUERIES"
        problems.append(Problem("warning", "more segments than queries", f"{text}: {mend}"))
    return problems


def shared_images(reports: Sequence[DataSetReport]) -> list[Problem]:
    """Images of one data set whose bytes are those of an image of another."""
    problems = []
    for index, report in enumerate(reports):
        for earlier in reports[:index]:
            for digest in report.digests.keys() & earlier.digests.keys():
                text = (
                    f"{report.digests[digest]}: the same bytes as {earlier.digests[digest]} of {earlier.name}"
                )
                mend = "a model is to be tested on images it was not trained on"
                problems.append(Problem("warning", "image in two data sets", f"{text}; {mend}"))
    return sorted(problems)


def show_progress(name: str, reports: Iterable[ImageReport], total: int) -> Iterable[ImageReport]:
    return tqdm(reports, total=total, desc=name, unit="img", leave=False)


def print_reports(reports: Sequence[DataSetReport]) -> None:
    """A table of the data sets, and one of the classes for each."""
    columns = [
        "data set",
        "images",
        "classes",
        "segments",
        "most in an image",
        "crowd",
        "void",
        "crowd pixels",
    ]
    rows = [
        [
            report.name,
            report.images,
            len(report.classes),
            report.segments,
            report.most_segments,
            report.crowd,
            share(report.void, report.pixels),
            share(report.crowd_pixels, report.pixels),
        ]
        for report in reports
    ]
    print(table(columns, rows))
    for report in reports:
        if report.images:
            counts = [
                [index, c.name, c.kind, c.images, c.segments, share(c.pixels, report.pixels)]
                for index, c in enumerate(report.classes)
            ]
            print(f"\n{report.name}")
            print(table(["", "class", "kind", "images", "segments", "pixels"], counts))


def print_findings(findings: Findings) -> None:
    """A line for each kind of problem, and below it one for each of the first of that kind."""
    for level, meaning in LEVELS.items():
        groups = [group for group in findings.groups() if group.level == level]
        if groups:
            count = findings.count(level)
            print(f"\n{count} {level}{'s' * (count > 1)}: {meaning}")
        for group in groups:
            print(f"  {group.kind}: {group.count}")
            for text in group.examples:
                print(f"    {text}")
            if group.count > len(group.examples):
                print(f"    and {group.count - len(group.examples)} more")
    if not findings.groups():
        print("\nnothing is wrong")


def report_content(reports: Sequence[DataSetReport], findings: Findings) -> dict[str, Any]:
    """What is printed, as JSON has it."""
    data_sets = []
    for report in reports:
        content = asdict(report)
        del content["digests"]
        data_sets.append({**content, "segments": report.segments})
    counts: dict[str, int] = {f"{level}s": findings.count(level) for level in LEVELS}
    return {"data_sets": data_sets, **counts, "findings": [asdict(group) for group in findings.groups()]}


def write_report(path: Path, content: dict[str, Any]) -> None:
    try:
        with replace_file(path) as file:
            file.write(json.dumps(content, indent=1).encode() + b"\n")
    except OSError as error:
        raise InputError(
            f"--report {path}: cannot be written ({error.strerror}); name another file"
        ) from error


def share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f}%" if whole else "-"


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    align = ["left" if name in ("data set", "class", "kind") else "right" for name in columns]
    return tabulate(rows, headers=columns, tablefmt="pipe", disable_numparse=True, colalign=align)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    findings = Findings(options.examples)
    if options.config_file:
        cfg = project_config(options.config_file, options.opts)
        reports = validate_configured(cfg, options.split, findings, options.workers)
    else:
        name = Path(options.json).stem
        reports = [
            validate_coco_panoptic(
                name,
                options.images,
                options.json,
                options.pngs,
                findings,
                workers=options.workers,
                progress=partial(show_progress, name),
            )
        ]
    print_reports(reports)
    print_findings(findings)
    if options.report:
        write_report(options.report, report_content(reports, findings))
    return int(findings.count("error") > 0)


if __name__ == "__main__":
    sys.exit(run_cli(main))
