"""Counting panoptic quality: from the maps in memory, and panopticapi's way by PNGs written and read again.

    python -m tools.benchmarks.panoptic_quality
    python -m tools.benchmarks.panoptic_quality --quick

Ground truth and predictions are random maps of smooth regions. Ours reads the ground truth's PNG and counts;
panopticapi's also writes the prediction's PNG and reads it. "same" says that both counted the same matches
and misses of every class, with equal sums of IoU. Needs panopticapi (requirements-dev.txt).
"""

import contextlib
import io
import json
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from mask_former.data.id_map import measure_segments, read_id_map, write_id_map
from mask_former.errors import InputError, run_cli
from mask_former.evaluation.panoptic_quality import PanopticQuality
from tools.benchmarks.measure import Report, benchmark_parser, compare

CLASSES, THINGS = 150, range(50, 150)
SIZES = [(512, 683), (640, 853), (1024, 1365)]
SEGMENTS = [10, 30, 100]
PROCESSES = [1, 2]


class Scene:
    """Ground truth (a PNG in the folder) and prediction of one image."""

    def __init__(self, folder: Path, number: int, size: tuple[int, int], segments: int) -> None:
        generator = torch.Generator().manual_seed(number)
        coarse = torch.randn(1, segments, 10, 12, generator=generator)
        fields = F.interpolate(coarse, size=size, mode="bicubic")[0]
        moved = torch.roll(fields, (size[0] // 50, size[1] // 50), (1, 2))
        self.ids = (fields.argmax(dim=0).int() * 7919 + 1).numpy()
        self.predicted = (moved.argmax(dim=0).int() + 1).numpy()
        self.segments = _segments(self.ids)
        self.predicted_segments = _segments(self.predicted)
        self.folder, self.name = folder, f"{number}.png"
        for side in ("true", "predicted"):
            (folder / side).mkdir(exist_ok=True)
        write_id_map(folder / "true" / self.name, self.ids)

    def entry(self, segments: list[dict[str, Any]]) -> dict[str, Any]:
        """As panopticapi's JSON has it."""
        return {"file_name": self.name, "image_id": self.name, "segments_info": segments}


def _segments(ids: np.ndarray) -> list[dict[str, Any]]:
    return [
        {"id": value, "category_id": value % CLASSES, "iscrowd": 0, "area": area, "bbox": box}
        for value, (area, box) in measure_segments(ids).items()
    ]


def ours(scenes: list[Scene]) -> PanopticQuality:
    """As the evaluator counts a prediction that is in memory."""
    quality = PanopticQuality(CLASSES, THINGS)
    for scene in scenes:
        ids = read_id_map(scene.folder / "true" / scene.name)
        quality.update(ids, scene.segments, scene.predicted, scene.predicted_segments)
    return quality


def by_panopticapi(scenes: list[Scene]) -> Any:
    """Predictions written, with their JSON, and counted by panopticapi in one process."""
    from panopticapi.evaluation import pq_compute_single_core

    folder = scenes[0].folder
    for scene in scenes:
        write_id_map(folder / "predicted" / scene.name, scene.predicted)
    entries = [scene.entry(_segments(scene.predicted)) for scene in scenes]
    (folder / "predicted.json").write_text(json.dumps(entries))
    pairs = [(scene.entry(scene.segments), entry) for scene, entry in zip(scenes, entries, strict=True)]
    categories = {c: {"id": c, "isthing": int(c in THINGS)} for c in range(CLASSES)}
    with contextlib.redirect_stdout(io.StringIO()):  # it tells of every hundredth image
        return pq_compute_single_core(0, pairs, folder / "true", folder / "predicted", categories)


def same(quality: PanopticQuality, expected: Any) -> bool:
    """Equal numbers of every class."""
    return all(
        (quality.tp[c], quality.fp[c], quality.fn[c]) == (expected[c].tp, expected[c].fp, expected[c].fn)
        and abs(quality.iou[c] - expected[c].iou) < 1e-9
        for c in range(CLASSES)
    )


def in_processes(scenes: list[Scene], processes: int) -> float:
    """Wall-clock seconds of as many processes counting their share, without their start."""
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        pool.map(abs, range(processes), chunksize=1)
        shares = [scenes[index::processes] for index in range(processes)]
        began = time.perf_counter()
        total = PanopticQuality(CLASSES, THINGS)
        for quality in pool.map(ours, shares, chunksize=1):
            total.merge(quality)
        return time.perf_counter() - began


def main(arguments: list[str] | None = None) -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--images", type=int, default=10, help="of each size (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        import panopticapi  # noqa: F401
    except ImportError:
        raise InputError("this benchmark compares with panopticapi; install requirements-dev.txt") from None
    sizes, numbers = SIZES, SEGMENTS
    if options.quick:
        options.images, options.repeats, sizes, numbers = 2, 2, [(256, 341)], [30]

    columns = ["image", "segments", "panopticapi ms an image", "ours ms an image", "faster", "same"]
    report = Report("panoptic_quality", columns)
    growth = Report("panoptic_quality_processes", ["image", "processes", "ms an image", "faster"])
    with tempfile.TemporaryDirectory() as name:
        for size in sizes:
            for segments in numbers if size == sizes[0] else [30]:
                scenes = [Scene(Path(name), number, size, segments) for number in range(options.images)]
                add_row(report, options, scenes, segments)
        one = 0.0
        for processes in PROCESSES:
            seconds = min(in_processes(scenes * 4, processes) for _ in range(options.repeats))
            one = one or seconds
            each = 1000 * seconds / (4 * len(scenes))
            row = {"processes": processes, "ms an image": each, "faster": one / seconds}
            growth.add(image="×".join(map(str, scenes[0].ids.shape)), **row)
    report.finish(options.output)
    growth.finish(options.output)


def add_row(report: Report, options: Any, scenes: list[Scene], segments: int) -> None:
    """Measure both ways by turns."""
    found = compare(
        {"panopticapi": lambda: by_panopticapi(scenes), "ours": lambda: ours(scenes)},
        repeats=options.repeats,
        cpu_time=options.cpu_time,
    )
    slow, fast = (1000 * found[name].seconds / len(scenes) for name in ("panopticapi", "ours"))
    cells = {
        "image": "×".join(map(str, scenes[0].ids.shape)),
        "segments": segments,
        "panopticapi ms an image": slow,
        "ours ms an image": fast,
        "faster": slow / fast,
        "same": same(ours(scenes), by_panopticapi(scenes)),
    }
    report.add(**cells)


if __name__ == "__main__":
    sys.exit(run_cli(main))
