"""What PISR adds to a training step, in time and memory, and how it grows.

    python -m tools.benchmarks.pisr
    python -m tools.benchmarks.pisr --size 1280 --batch 4 --amp bfloat16 --device cuda

The step is the base network's, R-50: forward, losses, backward. Beside it, on random first predictions of
that size, forward and backward of the second prediction from F alone ("second prediction"), and of PISR with
its second prediction: folded (what training runs), unfolded (plain_pisr.py), direct (the definition). "PISR's
own" is what a way takes beyond the second prediction; the second prediction's loss is the criterion's matter
(tools/benchmarks/criterion.py). Peaks are those of each call alone: by how much a whole step's rises, where
other things are at their peak, tools/benchmarks/step.py tells. The growth table is of the same calls without
the base network.
"""

import argparse
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from detectron2.modeling import build_model
from torch import Tensor

from mask_former.errors import run_cli
from pisr_maskformer import PISR
from tools.benchmarks.measure import MIB, Report, benchmark_parser, compare
from tools.benchmarks.plain_pisr import unfolded
from tools.benchmarks.step import samples
from tools.project import project_config

BASELINE = "configs/ade20k/maskformer_r50.yaml"
SECOND = "second prediction"
WAYS = ("folded", "unfolded", "direct")
STRIDE = 4  # of the mask features


@dataclass(frozen=True)
class Sizes:
    """Of a first prediction."""

    side: int = 640  # of the image, in pixels
    batch: int = 1
    queries: int = 100
    classes: int = 150
    channels: int = 256


def module(sizes: Sizes, device: str, direct: bool = False) -> PISR:
    """PISR with its default settings; the first two thirds of the classes are things."""
    torch.manual_seed(0)
    things = range(2 * sizes.classes // 3)
    return PISR(
        channels=sizes.channels,
        query_channels=sizes.channels,
        num_classes=sizes.classes,
        thing_ids=things,
        direct=direct,
    ).to(device)


def ways(sizes: Sizes, device: str, amp: torch.dtype | None) -> dict[str, Callable[[], Any]]:
    """Forward and backward of every way on the same first prediction, in half precision under `amp`."""
    side = sizes.side // STRIDE
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        values = torch.randn(sizes.batch, *shape, generator=generator).to(device, amp or torch.float32)
        return values.requires_grad_()

    features, masks = normal(sizes.channels, side, side), normal(sizes.queries, side, side)
    logits, queries = normal(sizes.queries, sizes.classes + 1), normal(sizes.queries, sizes.channels)
    gradient = normal(sizes.queries, side, side).detach()

    def with_pisr(pisr: PISR) -> None:
        inputs = [features, masks, logits, queries]
        with torch.autocast(device, dtype=amp, enabled=amp is not None):
            maps, probs = masks.float().sigmoid(), logits.float().softmax(-1)[..., :-1]
            result = pisr(features, maps, probs, queries)
            second = result.features.masks(result.queries)
        torch.autograd.grad(second, [*inputs, *pisr.parameters()], gradient)

    def without() -> None:
        with torch.autocast(device, dtype=amp, enabled=amp is not None):
            second = torch.einsum("bqc,bchw->bqhw", queries, features)
        torch.autograd.grad(second, [features, queries], gradient)

    plain = unfolded(module(sizes, device))
    modules = zip(WAYS, (module(sizes, device), plain, module(sizes, device, direct=True)), strict=True)
    return {SECOND: without} | {
        name: lambda pisr=pisr: with_pisr(pisr)  # type: ignore[misc]
        for name, pisr in modules
    }


def base_step(sizes: Sizes, device: str, amp: torch.dtype | None, depth: int) -> Callable[[], None]:
    """Forward, losses and backward of the base network; gradients are dropped."""
    changes: dict[str, Any] = {
        "MODEL.DEVICE": device,
        "MODEL.WEIGHTS": "",
        "MODEL.RESNETS.DEPTH": depth,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64 if depth < 50 else 256,
        "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": sizes.queries,
    }
    cfg = project_config(BASELINE, [str(part) for pair in changes.items() for part in pair])
    torch.manual_seed(0)
    model = build_model(cfg).train()
    given = samples(sizes.batch, sizes.side, 20, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)

    def step() -> None:
        with torch.autocast(device, dtype=amp, enabled=amp is not None):
            losses = model(given)
        sum(losses.values()).backward()
        model.zero_grad(set_to_none=True)

    return step


def share_of_a_step(options: argparse.Namespace, sizes: Sizes, amp: torch.dtype | None) -> None:
    """The table of PISR's share."""
    columns = ("way", "seconds", "PISR's own", "share of the step", "peak MiB")
    report = Report("pisr", columns, options.device)
    step = base_step(sizes, options.device, amp, options.depth)
    measured = compare(
        {"step of the base network": step} | ways(sizes, options.device, amp),
        device=options.device,
        repeats=options.repeats,
        cpu_time=options.cpu_time,
    )
    base, second = next(iter(measured.values())), measured[SECOND]
    for name, one in measured.items():
        own = one.seconds - second.seconds if name in WAYS else one.seconds
        shown = own if name in WAYS else ""
        row = (name, one.seconds, shown, own / base.seconds, one.peak_bytes / MIB)
        report.add(**dict(zip(columns, row, strict=True)))
    report.finish(options.output)


def growth(options: argparse.Namespace, base: Sizes, amp: torch.dtype | None) -> None:
    """The table of what grows with what."""
    grown = {
        "side": (64, 128) if options.quick else (320, 640, 1280),
        "queries": (10, 20) if options.quick else (50, 100, 300),
        "classes": (20, 40) if options.quick else (20, 150, 850),
    }
    columns = ("what grows", "to", "way", "seconds", "peak MiB")
    report = Report("pisr_growth", columns, options.device)
    for what, values in grown.items():
        for value in values:
            found = compare(
                ways(replace(base, **{what: value}), options.device, amp),
                device=options.device,
                repeats=options.repeats,
                cpu_time=options.cpu_time,
            )
            for name, one in found.items():
                row = (what, value, name, one.seconds, one.peak_bytes / MIB)
                report.add(**dict(zip(columns, row, strict=True)))
    report.finish(options.output)


def main(arguments: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    parser = benchmark_parser(__doc__)
    parser.add_argument("--size", type=int, default=640, help="side of the image (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="images (default: %(default)s)")
    parser.add_argument("--amp", choices=("none", "bfloat16", "float16"), default="none")
    parser.add_argument("--depth", type=int, default=50, help="of the base's ResNet (default: %(default)s)")
    options = parser.parse_args(arguments)
    sizes = Sizes(side=options.size, batch=options.batch)
    if options.quick:
        options.repeats, sizes = 1, Sizes(side=128, queries=20, classes=30, channels=64)
        options.depth = 18
    amp = None if options.amp == "none" else getattr(torch, options.amp)
    share_of_a_step(options, sizes, amp)
    growth(options, sizes, amp)


if __name__ == "__main__":
    sys.exit(run_cli(main))
