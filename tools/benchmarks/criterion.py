"""The criterion, forward and backward, beside its plain definition: time, peak memory, and how they grow.

    python -m tools.benchmarks.criterion
    python -m tools.benchmarks.criterion --compiled --growth targets side
    python -m tools.benchmarks.criterion --growth --step

The first table is the mask losses alone; the second the whole criterion, matching included. Memory is what
tensors take beyond predictions and targets; the predictions' gradients are part of it. The
third, with --step, is that of a whole step, for which the plain form takes 13 GB.
"""

import sys
from argparse import Namespace

import torch
from torch import Tensor

from mask_former.criterion import SetCriterion
from mask_former.errors import run_cli
from mask_former.matcher import HungarianMatcher
from mask_former.upsampled_losses import upsampled_mask_losses
from tools.benchmarks.criterion_data import FULL, SMALL, Sizes, growth, predictions_of, segments, targets_of
from tools.benchmarks.measure import SIDE_BY_SIDE, Report, benchmark_parser, side_by_side
from tools.benchmarks.plain_criterion import plain_losses, plain_mask_losses

COLUMNS = ("what", *SIDE_BY_SIDE)


def mask_losses(report: Report, count: int, side: int, options: Namespace) -> None:
    """`count` masks, four times as large as their logits."""
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn((1, count, side // 4, side // 4), generator=generator)).to(report.device)
    masks = segments(count, side, generator).to(report.device)
    every = torch.arange(count, device=report.device)
    logits.requires_grad_()

    def gradient(losses: tuple[Tensor, Tensor]) -> None:
        (20 * losses[0].sum() + losses[1].sum()).backward()
        logits.grad = None

    def ours() -> None:
        pairs = [[(every, every)]]
        gradient(upsampled_mask_losses([logits], [masks], pairs, compiled=options.compiled))

    cells = side_by_side(lambda: gradient(plain_mask_losses(logits[0], masks)), ours, options)
    report.add(what=f"{count} masks, {side // 4}² to {side}²", **cells)


def whole(report: Report, what: str, sizes: Sizes, options: Namespace) -> None:
    """Matching, losses and their gradients of a step's predictions."""
    matcher = HungarianMatcher()
    module = SetCriterion(num_classes=sizes.classes, matcher=matcher, num_earlier_layers=0).to(report.device)
    module.compiled = options.compiled
    predictions, targets = predictions_of(sizes, report.device), targets_of(sizes, report.device)
    totals = module.totals([target["labels"] for target in targets], sizes.queries)
    leaves = [value for prediction in predictions.values() for value in prediction.values()]

    def gradient(losses: dict[str, Tensor]) -> None:
        torch.stack(list(losses.values())).sum().backward()
        for leaf in leaves:
            leaf.grad = None  # type: ignore[attr-defined]

    cells = side_by_side(
        lambda: gradient(plain_losses(module, predictions, targets, totals)),
        lambda: gradient(module.losses(predictions, targets, totals)),
        options,
    )
    report.add(what=what, **cells)


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
    if options.quick:
        options.repeats = min(2, options.repeats)

    alone = Report("criterion_mask_losses", COLUMNS, options.device)
    mask_losses(alone, masks, side, options)
    alone.finish(options.output)
    report = Report("criterion", COLUMNS, options.device)
    for name, grown in growth(options.quick).items():
        for sizes in grown if name in options.growth else ():
            whole(report, f"{name}: {sizes}", sizes, options)
    report.finish(options.output)
    if options.step:
        step = Report("criterion_step", COLUMNS, options.device)
        sizes = SMALL if options.quick else FULL
        whole(step, str(sizes), sizes, options)
        step.finish(options.output)


if __name__ == "__main__":
    sys.exit(run_cli(main))
