"""A whole training step, this project's and that of Hugging Face's MaskFormer: time, memory, images a second.

    python -m tools.benchmarks.step
    python -m tools.benchmarks.step --batch 1 4 16 --amp bfloat16 --device cuda
    python -m tools.benchmarks.step --size 320 640 1280
    python -m tools.benchmarks.step --fits 16 24 40     # the largest batch for so many GB

A step: images from the host, forward, losses, backward, clipping, optimiser, and the numbers of the log.
"plain" is this project's step without what makes it fast (plain_step.py). The peer's needs `transformers`
(peer.py tells how it is installed and how its network differs); its images and targets lie on the device
already. Ratios are to the first row of a size.
"""

import argparse
import logging
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances

from mask_former.errors import run_cli
from mask_former.optimizer import build_clipping, build_optimizer, parameter_groups
from mask_former.training.acceleration import accelerate
from mask_former.training.step import TrainingStep, amp_dtype
from tools.benchmarks.criterion_data import segments
from tools.benchmarks.measure import MIB, Report, benchmark_parser, compare, peak_memory
from tools.benchmarks.peer import BLOCKS, INSTALL, build_peer, peer_step
from tools.benchmarks.plain_step import make_plain, plain_optimizer
from tools.project import project_config

BASELINE, PISR = "configs/ade20k/maskformer_r50.yaml", "configs/ade20k/maskformer_r50_pisr.yaml"
PEER = "transformers MaskFormer"
WAYS = {  # name -> configuration, whether the plain way
    "MaskFormer": (BASELINE, False),
    "MaskFormer + PISR": (PISR, False),
    "MaskFormer + PISR, plain": (PISR, True),
}
GB = 10**9
SAMPLED = (2, 4)  # batches whose memory tells that of others


def configuration(path: str, options: argparse.Namespace) -> CfgNode:
    """A model's configuration with what the options change."""
    changes: dict[str, Any] = {
        "MODEL.DEVICE": options.device,
        "MODEL.WEIGHTS": "",
        "MODEL.RESNETS.DEPTH": options.depth,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64 if options.depth < 50 else 256,
        "SOLVER.AMP.ENABLED": options.amp != "none",
        "SOLVER.AMP.DTYPE": options.amp if options.amp != "none" else "bfloat16",
        "SOLVER.AMP.CHANNELS_LAST": options.channels_last,
        "SOLVER.COMPILE": options.compile,
    }
    return project_config(path, [str(part) for pair in changes.items() for part in pair])


def samples(batch: int, size: int, targets: int, num_classes: int) -> list[dict[str, Any]]:
    """Training samples of noise, with targets that look like segments."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for number in range(batch):
        instances = Instances((size, size))
        instances.gt_classes = torch.randint(num_classes, (targets,), generator=generator)
        instances.gt_masks = segments(targets, size, generator)
        image = torch.randint(256, (3, size, size), generator=generator, dtype=torch.uint8)
        found.append({"image": image, "instances": instances, "image_id": number})
    return found


def own_step(cfg: CfgNode, plain: bool) -> TrainingStep:
    """The trainer's step with a model at random weights."""
    torch.manual_seed(0)
    model = build_model(cfg).train()
    if plain:
        optimizer = plain_optimizer(parameter_groups(make_plain(model), lr=1e-4, weight_decay=1e-4))
    else:
        accelerate(cfg, model)
        optimizer = build_optimizer(cfg, model)
    return TrainingStep(model, optimizer, build_clipping(cfg), amp_dtype=amp_dtype(cfg))


def whole_step(step: TrainingStep, given: list[dict[str, Any]]) -> None:
    """One step that leaves no gradients behind: they are part of what it takes at most."""
    step(0, [given])
    step.optimizer.zero_grad()


def ways(options: argparse.Namespace, batch: int, size: int) -> dict[str, Callable[[], Any]]:
    """Every way of doing a step on the same samples."""
    cfg = configuration(BASELINE, options)
    given = samples(batch, size, options.targets, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    found: dict[str, Callable[[], Any]] = {}
    for name, (path, plain) in WAYS.items():
        if not (plain and options.no_plain):
            step = own_step(configuration(path, options), plain)
            found[name] = partial(whole_step, step, given)
    peer = build_peer(options.depth, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    if peer is None:
        return found
    if options.compile:
        peer.compile()
    device = torch.device(options.device)
    instances = [sample["instances"].to(device) for sample in given]
    images = torch.stack([sample["image"] for sample in given]).to(device)
    found[PEER] = peer_step(
        peer.to(device),
        (images.float() - 118) / 58,
        [one.gt_masks.float() for one in instances],
        [one.gt_classes for one in instances],
        max_norm=cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE,
        amp_dtype=amp_dtype(cfg),
    )
    return found


def compare_steps(options: argparse.Namespace) -> None:
    """Time and memory of every way, at every size and batch."""
    columns = ("size", "batch", "way", "seconds", "images/s", "time ratio", "peak MiB", "memory ratio")
    report = Report("step", columns, options.device)
    for size in options.size:
        for batch in options.batch:
            measured = compare(
                ways(options, batch, size),
                device=options.device,
                repeats=options.repeats,
                cpu_time=options.cpu_time,
            )
            first = next(iter(measured.values()))
            for name, one in measured.items():
                cells = (size, batch, name, one.seconds, batch / one.seconds)
                ratios = one.seconds / first.seconds, one.peak_bytes / first.peak_bytes
                row = (*cells, ratios[0], one.peak_bytes / MIB, ratios[1])
                report.add(**dict(zip(columns, row, strict=True)))
    report.finish(options.output)


def bytes_held(step: TrainingStep) -> int:
    """What the network and the optimiser hold between two steps, without gradients."""
    tensors = [*step.network.parameters(), *step.network.buffers()]
    for moments in step.optimizer.state.values():
        tensors += [moment for moment in moments.values() if torch.is_tensor(moment)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def report_batches(options: argparse.Namespace) -> None:
    """The largest batch for each amount of memory, by the line through the peaks of 2 and of 4 images.

    (Those of 1 and 2 may lie in different phases of the step: the peak of one image may be that of the
    gradients.) Without the device's context and what the allocator leaves unused: keep a tenth in reserve.
    """
    columns = (
        "size",
        "way",
        "held GB",
        f"{SAMPLED[1]} images GB",
        "each further GB",
        *(f"{gb} GB" for gb in options.fits),
    )
    report = Report("step_batches", columns, options.device)
    for size in options.size:
        for name, (path, plain) in WAYS.items():
            if plain and options.no_plain:
                continue
            cfg = configuration(path, options)
            step, peaks = own_step(cfg, plain), {}
            for batch in (1, *SAMPLED):  # the first call makes the optimiser's moments
                given = samples(batch, size, options.targets, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
                peaks[batch] = peak_memory(partial(whole_step, step, given), options.device)
            held, (few, more) = bytes_held(step), SAMPLED
            each = (peaks[more] - peaks[few]) / (more - few)
            fixed = held + peaks[more] - more * each
            batches = [max(0, int((gb * GB - fixed) // each)) for gb in options.fits]
            row = (size, name, held / GB, peaks[more] / GB, each / GB, *batches)
            report.add(**dict(zip(columns, row, strict=True)))
    report.finish(options.output)


def main(arguments: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    parser = benchmark_parser(__doc__)
    parser.add_argument("--size", type=int, nargs="+", default=[320, 640], help="side of an image (320 640)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="images of a step (1)")
    parser.add_argument("--targets", type=int, default=10, help="segments of an image (default: %(default)s)")
    parser.add_argument("--depth", type=int, choices=sorted(BLOCKS), default=50, help="of the ResNet (50)")
    parser.add_argument("--amp", choices=("none", "bfloat16"), default="none", help="(default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="SOLVER.COMPILE; the peer as a whole")
    parser.add_argument("--tf32", action="store_true", help="float32 products of a GPU with TF32's mantissa")
    parser.add_argument(
        "--channels-last",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="SOLVER.AMP.CHANNELS_LAST, for this project's",
    )
    parser.add_argument("--no-plain", action="store_true", help="without the plain forms")
    parser.add_argument("--fits", type=int, nargs="+", metavar="GB", help="the largest batches instead")
    options = parser.parse_args(arguments)
    if options.quick:
        options.size, options.batch, options.depth, options.repeats = [128], [1], 18, 1
        options.targets, options.no_plain = min(options.targets, 4), True
    if options.tf32:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if options.fits:
        report_batches(options)
        return
    if find_spec("transformers") is None:
        print(INSTALL)
    compare_steps(options)


if __name__ == "__main__":
    sys.exit(run_cli(main))
