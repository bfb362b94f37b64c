"""The criterion, forward and backward, beside its plain definition: time, peak memory, and how they grow.

    python -m tools.benchmarks.criterion
    python -m tools.benchmarks.criterion --compiled --growth targets side
    python -m tools.benchmarks.criterion --growth --step

The first table is the mask losses alone; the second the whole criterion, matching included. Memory is what
tensors take beyond predictions and targets; the predictions' gradients are part of it. On a CPU, processor
time. The third, with --step, is that of a whole step, for which the plain form takes 13 GB.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mask_former.criterion import SetCriterion
from mask_former.errors import run_cli
from mask_former.matcher import HungarianMatcher
from mask_former.upsampled_losses import upsampled_mask_losses
from tools.benchmarks.criterion_data import FULL, SMALL, Sizes, growth, predictions_of, segments, targets_of
from tools.benchmarks.measure import MIB, Report, benchmark_parser, compare
from tools.benchmarks.plain_criterion import plain_losses, plain_mask_losses

COLUMNS = ("what", "plain s", "ours s", "times faster", "plain MiB", "ours MiB", "memory")


def add_row(
    report: Report, what: str, plain: Callable[[], Any], ours: Callable[[], Any], repeats: int
) -> None:
    """Measure both, taking turns."""
    device = report.device
    ways = {"plain": plain, "ours": ours}
    found = compare(ways, device=device, repeats=repeats, cpu_time=device == "cpu")
    one, other = found["plain"], found["ours"]
    report.add(
        **{
            "what": what,
            "plain s": one.seconds,
            "ours s": other.seconds,
            "times faster": one.seconds / other.seconds,
            "plain MiB": one.peak_bytes / MIB,
            "ours MiB": other.peak_bytes / MIB,
            "memory": other.peak_bytes / one.peak_bytes,
        }
    )


def mask_losses(report: Report, count: int, side: int, repeats: int, compiled: bool) -> None:
    """`count` masks, four times as large as their logits."""
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn((1, count, side // 4, side // 4), generator=generator)).to(report.device)
    masks = segments(count, side, generator).to(report.device)
    every = torch.arange(count, device=report.device)
    logits.requires_grad_()

    def gradient(losses: tuple[Tensor, Tensor]) -> None:
        (20 * losses[0].sum() + losses[1].sum()).backward()
        logits.grad = None

    add_row(
        report,
        f"{count} masks, {side // 4}² to {side}²",
        lambda: gradient(plain_mask_losses(logits[0], masks)),
        lambda: gradient(upsampled_mask_losses([logits], [masks], [[(every, every)]], compiled=compiled)),
        repeats,
    )


def whole(report: Report, what: str, sizes: Sizes, repeats: int, compiled: bool) -> None:
    """Matching, losses and their gradients of a step's predictions."""
    matcher = HungarianMatcher()
    module = SetCriterion(num_classes=sizes.classes, matcher=matcher, num_earlier_layers=0).to(report.device)
    module.compiled = compiled
    predictions, targets = predictions_of(sizes, report.device), targets_of(sizes, report.device)
    totals = module.totals([target["labels"] for target in targets], sizes.queries)
    leaves = [value for prediction in predictions.values() for value in prediction.values()]

    def gradient(losses: dict[str, Tensor]) -> None:
        torch.stack(list(losses.values())).sum().backward()
        for leaf in leaves:
            leaf.grad = None  # type: ignore[attr-defined]

    add_row(
        report,
        what,
        lambda: gradient(plain_losses(module, predictions, targets, totals)),
        lambda: gradient(module.losses(predictions, targets, totals)),
        repeats,
    )


def main(arguments: list[str] | None = None) -> None:
    parser = benchmark_parser(__doc__)
    grows = list(growth(quick=False))
    parser.add_argument("--masks", type=int, default=48, help="of the first table (default: %(default)s)")
    parser.add_argument("--side", type=int, default=640, help="of images (default: %(default)s)")
    parser.add_argument("--compiled", action="store_true", help="ours by torch.compile")
    parser.add_argument("--growth", nargs="*", choices=grows, default=grows, help="what to grow (all)")
    parser.add_argument("--step", action="store_true", help="also all predictions of a step")
    options = parser.parse_args(arguments)
    masks, side = (4, 128) if options.quick else (options.masks, options.side)
    repeats = min(2, options.repeats) if options.quick else options.repeats

    alone = Report("criterion_mask_losses", COLUMNS, options.device)
    mask_losses(alone, masks, side, repeats, options.compiled)
    alone.finish(options.output)
    report = Report("criterion", COLUMNS, options.device)
    for name, grown in growth(options.quick).items():
        for sizes in grown if name in options.growth else ():
            whole(report, f"{name}: {sizes}", sizes, repeats, options.compiled)
    report.finish(options.output)
    if options.step:
        step = Report("criterion_step", COLUMNS, options.device)
        sizes = SMALL if options.quick else FULL
        whole(step, str(sizes), sizes, repeats, options.compiled)
        step.finish(options.output)


if __name__ == "__main__":
    sys.exit(run_cli(main))
