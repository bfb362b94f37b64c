"""From predictions to results of one image: our way, and the definition on full-size masks.

    python -m tools.benchmarks.inference
    python -m tools.benchmarks.inference --quick

The predictions are blobs with sharp edges at a quarter of the padded image's size. Of 100 queries as many as
told are sure of a class, the others see no object. "same" says that both ways gave the same result:
panoptic bit for bit, semantic scores and the best class of every pixel but for rounding (1e-5). The last
table is beside Hugging Face's `post_process_panoptic_segmentation` on the same predictions, where that is
installed (peer.py).
"""

import itertools
import sys
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from mask_former.errors import run_cli
from mask_former.inference import panoptic_inference, semantic_inference, semantic_inference_then_resize
from mask_former.resizing import Resizing
from tools.benchmarks import plain_inference as plain
from tools.benchmarks.measure import SIDE_BY_SIDE, Report, benchmark_parser, compare, side_by_side
from tools.benchmarks.peer import INSTALL, peer_panoptic

QUERIES, CLASSES, THINGS = 100, 150, range(50, 150)
ROUNDING = 1e-5  # of sums of some hundred probabilities, from masks resized in another order
SCORE, OVERLAP = 0.7, 0.8  # the thresholds of the ADE20K configurations
# image as its file has it and as the network sees it: shortest side 640
ADE20K = ((512, 683), (640, 853))
SIZES = [ADE20K, ((640, 853), (640, 853)), ((1024, 1365), (640, 853))]
KEPT = [10, 20, 40, 100]
GROWING = {"queries": [50, 100, 300], "classes": [20, 150, 850]}
COLUMNS = ("result", "queries", "kept", "classes", "image")
MEASURED = (*SIDE_BY_SIDE, "same")


def resizing_of(size: tuple[int, int], image: tuple[int, int], divisor: int = 32) -> Resizing:
    """From the image as the network sees it, padded to a multiple, to the size of its file."""
    height, width = (-(-side // divisor) * divisor for side in image)
    return Resizing((height, width), image, size)


def predictions(
    queries: int, kept: int, classes: int, resizing: Resizing, device: str = "cpu", seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Class logits Q×(C+1), `kept` of them sure of a class, and mask logits of blobs at stride 4."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(queries, classes + 1, generator=generator)
    sure = torch.randperm(queries, generator=generator)[:kept]
    labels = torch.full((queries,), classes)
    labels[sure] = torch.randint(classes, (kept,), generator=generator)
    logits[torch.arange(queries), labels] = 12 + torch.randn(queries, generator=generator)
    coarse = torch.randn(1, queries, 8, 10, generator=generator)
    size = [side // 4 for side in resizing.padded]
    # a threshold at 1.2 leaves blobs that cover about an eighth of the image
    masks = 15 * (F.interpolate(coarse, size=size, mode="bicubic", align_corners=False)[0] - 1.2)
    return logits.to(device), masks.to(device)


def panoptic_row(report: Report, options: Namespace, **case: Any) -> None:
    logits, masks, resizing = inputs(options, **case)

    def ours() -> Any:
        return panoptic_inference(logits, masks, THINGS, SCORE, OVERLAP, resizing)

    def defined() -> Any:
        return plain.panoptic(logits, plain.resize(masks, resizing), THINGS, SCORE, OVERLAP)

    (ids, segments), (plain_ids, plain_segments) = ours(), defined()
    same = torch.equal(ids, plain_ids) and segments == plain_segments
    add_row(report, options, {"result": "panoptic", **case}, defined, ours, same)


def semantic_row(report: Report, options: Namespace, resize_first: bool, **case: Any) -> None:
    logits, masks, resizing = inputs(options, **case)

    def ours() -> Tensor:
        if resize_first:
            return semantic_inference(logits, masks, resizing)
        return semantic_inference_then_resize(logits, masks, resizing)

    def defined() -> Tensor:
        if resize_first:
            return plain.semantic(logits, plain.resize(masks, resizing))
        return plain.to_result(plain.semantic(logits, plain.to_padded(masks, resizing)), resizing)

    scores, plain_scores = ours(), defined()
    same = bool((scores - plain_scores).abs().max() < ROUNDING) and largest_but_for_rounding(
        plain_scores, scores.argmax(dim=0)
    )
    del scores, plain_scores
    name = "semantic, resized first" if resize_first else "semantic, mixed first"
    add_row(report, options, {"result": name, **case}, defined, ours, same)


def largest_but_for_rounding(scores: Tensor, classes: Tensor) -> bool:
    """Whether no class of C×H×W scores is clearly better than the one that H×W classes name."""
    return bool((scores.amax(dim=0) - scores.gather(0, classes[None])[0]).max() < ROUNDING)


def inputs(
    options: Namespace, queries: int, kept: int, classes: int, image: Any
) -> tuple[Tensor, Tensor, Resizing]:
    resizing = resizing_of(*image)
    return *predictions(queries, kept, classes, resizing, options.device), resizing


def add_row(
    report: Report,
    options: Namespace,
    case: dict[str, Any],
    defined: Callable[[], Any],
    ours: Callable[[], Any],
    same: bool,
) -> None:
    """Measure both ways by turns."""
    cells = side_by_side(defined, ours, options) | {"same": same}
    report.add(**case | {"image": "×".join(map(str, case["image"][0]))}, **cells)


def peer_row(report: Report, options: Namespace, **case: Any) -> bool:
    """Whether the peer is installed."""
    logits, masks, resizing = inputs(options, **case)
    stuff = set(range(case["classes"])) - set(THINGS)
    peer = peer_panoptic(
        logits, masks, size=resizing.size, stuff=stuff, score_threshold=SCORE, overlap_threshold=OVERLAP
    )
    if peer is None:
        return False
    found = compare(
        {"peer": peer, "ours": lambda: panoptic_inference(logits, masks, THINGS, SCORE, OVERLAP, resizing)},
        device=options.device,
        repeats=options.repeats,
        cpu_time=options.cpu_time,
    )
    slow, fast = found["peer"], found["ours"]
    report.add(
        image="×".join(map(str, resizing.size)),
        **{
            "kept": case["kept"],
            "peer s": slow.seconds,
            "ours s": fast.seconds,
            "faster": slow.seconds / fast.seconds,
            "smaller": slow.peak_bytes / fast.peak_bytes,
        },
    )
    return True


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    parser = benchmark_parser(__doc__)
    options = parser.parse_args(arguments)
    sizes, kept_numbers, growing = SIZES, KEPT, GROWING
    if options.quick:
        options.repeats = 1
        sizes, kept_numbers = [((128, 171), (160, 213))], [20]
        growing = {"queries": [50], "classes": [20]}
    usual = {"queries": QUERIES, "kept": 20, "classes": CLASSES, "image": sizes[0]}

    report = Report("inference_panoptic", [*COLUMNS, *MEASURED], options.device)
    for image, kept in tqdm(list(itertools.product(sizes, kept_numbers)), disable=None):
        panoptic_row(report, options, **usual | {"kept": kept, "image": image})
    for number in tqdm(growing["queries"], disable=None):
        panoptic_row(report, options, **usual | {"queries": number, "kept": number // 5})
    report.finish(options.output)

    report = Report("inference_semantic", [*COLUMNS, *MEASURED], options.device)
    for image, resize_first in tqdm(list(itertools.product(sizes, (True, False))), disable=None):
        semantic_row(report, options, resize_first, **usual | {"image": image})
    changes = [{key: number} for key, numbers in growing.items() for number in numbers]
    for change in tqdm(changes, disable=None):
        semantic_row(report, options, True, **usual | change)
    report.finish(options.output)

    report = Report(
        "inference_peer", ["image", "kept", "peer s", "ours s", "faster", "smaller"], options.device
    )
    cases = [usual | {"image": image, "kept": kept} for image in sizes for kept in kept_numbers]
    if all(peer_row(report, options, **case) for case in cases):
        report.finish(options.output)
    else:
        print(INSTALL)


if __name__ == "__main__":
    sys.exit(run_cli(main))
