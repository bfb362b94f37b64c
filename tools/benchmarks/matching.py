"""Matching of all predictions of a step beside one prediction and image at a time: time and peak memory.

    python -m tools.benchmarks.matching
    python -m tools.benchmarks.matching --device cuda

Also tells what the solver alone takes.
"""

import sys
from argparse import Namespace
from functools import partial

from mask_former.errors import run_cli
from mask_former.matcher import HungarianMatcher, assign
from tools.benchmarks.criterion import COLUMNS
from tools.benchmarks.criterion_data import FULL, SMALL, Sizes, growth, predictions_of, targets_of
from tools.benchmarks.measure import Report, benchmark_parser, measure, side_by_side
from tools.benchmarks.plain_criterion import plain_match


def matching(report: Report, solver: Report, what: str, sizes: Sizes, options: Namespace) -> None:
    """One row of both tables."""
    matcher = HungarianMatcher()
    predictions = list(predictions_of(sizes, report.device).values())
    targets = targets_of(sizes, report.device)
    cells = side_by_side(
        partial(plain_match, matcher, predictions, targets),
        partial(matcher.match, predictions, targets),
        options,
    )
    report.add(what=what, **cells)
    costs = [cost for of_images in matcher.costs(predictions, targets) for cost in of_images]
    alone = measure(
        lambda: [assign(cost) for cost in costs], repeats=options.repeats, cpu_time=options.cpu_time
    )
    solver.add(problems=len(costs), shape=str(tuple(costs[0].shape)), milliseconds=alone.seconds * 1000)


def main(arguments: list[str] | None = None) -> None:
    options = benchmark_parser(__doc__).parse_args(arguments)
    base = SMALL if options.quick else FULL
    if options.quick:
        options.repeats = min(2, options.repeats)
    report = Report("matching", COLUMNS, options.device)
    solver = Report("matching_solver", ("problems", "shape", "milliseconds"))
    matching(report, solver, str(base), base, options)
    for name, several in growth(options.quick).items():
        for sizes in several:
            matching(report, solver, f"{name}: {sizes}", sizes, options)
    report.finish(options.output)
    solver.finish(options.output)


if __name__ == "__main__":
    sys.exit(run_cli(main))
