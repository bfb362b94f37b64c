"""Training samples a second: this project's mapper and loader, against the straightforward mapper.

    python -m tools.benchmarks.loader
    python -m tools.benchmarks.loader --data datasets       # ADE20K as prepared there, instead of made images

Four tables: the mappers in one process; where their time goes; the same behind a loader with workers; what
grows with the size of the image and the number of its segments. Augmentation is that of the configuration.
Images are made in a temporary folder: JPEGs of the size and entropy of ADE20K's, labels of ragged segments.
On a busy machine --cpu-time counts the time of this process alone, except with workers.
"""

import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from PIL import Image
from tqdm import tqdm

from mask_former.config import load_config
from mask_former.data.ade20k import FOLDER, load_ade20k_panoptic
from mask_former.data.augmentations import SegmentInput
from mask_former.data.id_map import read_rgb_image, write_id_map
from mask_former.data.loader import build_training_loader
from mask_former.data.mappers import PanopticMapper, build_targets, image_tensor
from mask_former.data.segments import SegmentMap
from mask_former.errors import InputError, run_cli
from mask_former.random_state import seeded
from tools.benchmarks.measure import MIB, Report, benchmark_parser, compare
from tools.benchmarks.plain_loader import PlainPanopticMapper

CONFIG = "configs/ade20k/maskformer_r50_pisr.yaml"
SIZE, SEGMENTS = (512, 683), 16  # of most of ADE20K's images, in the middle
STEPS = {
    "ResizeTransform": "resize and crop image",
    "CropTransform": "resize and crop image",
    "AlignedResize": "resize and crop",
    "ColorAugSSDTransform": "colour jitter",
    "ColorJitter": "colour jitter",
    "Mirror": "flip and pad",
}

Mapper = Callable[[Any], dict[str, Any]]
Records = Sequence[Mapping[str, Any]]


def make_records(folder: Path, count: int, size: tuple[int, int], segments: int) -> list[dict[str, Any]]:
    """Records of `count` images and labels that are written to `folder`."""
    folder.mkdir(parents=True)
    records = []
    for number in tqdm(range(count), desc=f"images of {size[1]}×{size[0]}, {segments} segments", leave=False):
        generator = np.random.default_rng(number)
        index = ragged_segments(generator, size, segments)
        image, label = folder / f"{number}.jpg", folder / f"{number}.png"
        texture = sum(noise(generator, size, 2**octave) * 2.0 ** (0.8 * octave) for octave in range(7))
        colors = generator.uniform(40, 215, (segments + 1, 3))
        pixels = np.clip(colors[index] + 1.5 * texture[..., None], 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(image, quality=93)
        write_id_map(label, index * 1009)
        infos = [{"id": 1009 * key, "category_id": key % 150} for key in range(1, segments + 1)]
        records.append(
            {"file_name": str(image), "pan_seg_file_name": str(label), "segments_info": infos}
            | {"height": size[0], "width": size[1], "image_id": number}
        )
    return records


def noise(generator: np.random.Generator, size: tuple[int, int], grain: int) -> np.ndarray:
    """float32 H×W of about -1..1 that changes within `grain` pixels."""
    small = generator.standard_normal((size[0] // grain + 2, size[1] // grain + 2)).astype(np.float32)
    return cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC)


def ragged_segments(generator: np.random.Generator, size: tuple[int, int], count: int) -> np.ndarray:
    """int64 H×W of 0..count: what is nearest to random centres, with borders that wander."""
    rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float32)
    rows, columns = (
        grid + 12 * noise(generator, size, 32) + 3 * noise(generator, size, 3) for grid in (rows, columns)
    )
    centres = generator.uniform((0, 0), size, (count + 1, 2))
    nearest, found = np.full(size, np.inf, np.float32), np.zeros(size, np.int64)
    for key, (row, column) in enumerate(centres):
        distance = (rows - row) ** 2 + (columns - column) ** 2
        closer = distance < nearest
        nearest[closer], found[closer] = distance[closer], key
    return found


def mappers(cfg: CfgNode) -> dict[str, Mapper]:
    """The ways that are compared, with the augmentation of one configuration."""
    plain = {
        "min_sizes": cfg.INPUT.MIN_SIZE_TRAIN,
        "max_size": cfg.INPUT.MAX_SIZE_TRAIN,
        "crop": (cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE),
        "color_jitter": cfg.INPUT.COLOR_AUG_SSD,
        "pad_divisor": cfg.INPUT.SIZE_DIVISIBILITY,
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
    }
    return {
        "plain, masks first": PlainPanopticMapper(**plain, masks_first=True),
        "plain": PlainPanopticMapper(**plain),
        "ours": PanopticMapper.from_config(cfg),
    }


def map_all(mapper: Mapper, records: Records, rounds: int) -> dict[str, Any]:
    """Map every record `rounds` times, with the same draws for every mapper; the last sample."""
    for round_ in range(rounds):
        for position, record in enumerate(records):
            with seeded(round_, position):
                sample = mapper(record)
    return sample


def sample_bytes(sample: Mapping[str, Any]) -> int:
    """What a worker hands to the training process."""
    targets = sample["instances"]
    return sum(value.nbytes for value in (sample["image"], targets.gt_classes, targets.gt_masks))


def images_per_second(
    ways: Mapping[str, Mapper], records: Records, rounds: int, repeats: int, cpu_time: bool
) -> dict[str, float]:
    """Of each way in this process."""
    calls = {name: lambda mapper=mapper: map_all(mapper, records, rounds) for name, mapper in ways.items()}
    found = compare(calls, repeats=repeats, cpu_time=cpu_time)
    return {name: rounds * len(records) / measured.seconds for name, measured in found.items()}


def compare_mappers(ways: Mapping[str, Mapper], records: Records, options: Any) -> Report:
    report = Report("loader_mappers", ["mapper", "images/s", "ms an image", "against plain", "MiB a sample"])
    speeds = images_per_second(ways, records, options.rounds, options.repeats, options.cpu_time)
    for name, speed in speeds.items():
        size = sample_bytes(map_all(ways[name], records, 1)) / MIB
        cells = {"images/s": speed, "ms an image": 1000 / speed, "against plain": speed / speeds["plain"]}
        report.add(**{"mapper": name, **cells, "MiB a sample": size})
    return report


def compare_stages(ways: Mapping[str, Any], records: Records, options: Any) -> Report:
    """Milliseconds an image of every stage."""
    clock = time.process_time if options.cpu_time else time.perf_counter
    report = Report("loader_stages", ["mapper", "stage", "ms an image"])
    runs = {
        "plain": ways["plain"],
        "ours": lambda record, lap: our_stages(ways["ours"], record, lap),
    }
    for name, run in runs.items():
        spent: dict[str, float] = defaultdict(float)
        for position in range(options.rounds * len(records)):
            began = clock()

            def lap(stage: str, spent: dict[str, float] = spent) -> None:
                nonlocal began
                now = clock()
                spent[STEPS.get(stage, "flip and pad" if "Transform" in stage else stage)] += now - began
                began = now

            with seeded(1, position):
                run(records[position % len(records)], lap)
        for stage, seconds in spent.items():
            milliseconds = 1000 * seconds / (options.rounds * len(records))
            report.add(**{"mapper": name, "stage": stage, "ms an image": milliseconds})
    return report


def our_stages(mapper: PanopticMapper, record: Mapping[str, Any], lap: Callable[[str], None]) -> None:
    """What the mapper does, step by step."""
    image = read_rgb_image(record["file_name"])
    lap("read image")
    segments = mapper.read_segments(record)
    lap("read label")
    augmented = SegmentInput(image, segments)
    for step in mapper.augmentations.augs:
        lap(type(step(augmented)).__name__)
    build_targets(SegmentMap(augmented.sem_seg, segments.classes))
    lap("targets")
    image_tensor(augmented.image, mapper.image_format)
    lap("tensor")


def compare_workers(ways: Mapping[str, Mapper], records: Records, options: Any) -> Report:
    """Images a second that the training process gets, by the wall clock; nothing else is done there."""
    report = Report("loader_workers", ["mapper", "workers", "images/s"])
    for name in ("plain", "ours"):
        for workers in options.workers:
            batch, warm = 4, 2 * max(1, workers)
            loader = build_training_loader(records, ways[name], seed=0, batch_size=batch, num_workers=workers)
            batches = iter(loader)
            list(islice(batches, warm))
            began = time.perf_counter()
            for _ in islice(batches, options.batches):
                pass
            report.add(
                **{"mapper": name, "workers": workers}
                | {"images/s": batch * options.batches / (time.perf_counter() - began)}
            )
            del batches, loader
    return report


def growth(ways: Mapping[str, Mapper], folder: Path, options: Any) -> Report:
    """Milliseconds an image by the size of the file and the number of segments in it."""
    report = Report("loader_growth", ["image", "segments", "plain ms", "ours ms", "ratio"])
    shapes = [((side, side * 4 // 3), SEGMENTS) for side in options.sides]
    shapes += [(SIZE, segments) for segments in options.segments]
    for number, (size, segments) in enumerate(shapes):
        records = make_records(folder / str(number), 2, size, segments)
        two = {name: ways[name] for name in ("plain", "ours")}
        speeds = images_per_second(two, records, options.rounds, options.repeats, options.cpu_time)
        report.add(
            **{"image": f"{size[1]}×{size[0]}", "segments": segments}
            | {f"{name} ms": 1000 / speed for name, speed in speeds.items()}
            | {"ratio": speeds["ours"] / speeds["plain"]}
        )
    return report


def main(arguments: list[str] | None = None) -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--config-file", default=CONFIG, help="its augmentation (default: %(default)s)")
    parser.add_argument("--data", type=Path, help=f"folder with a prepared {FOLDER}")
    parser.add_argument("--images", type=int, default=8, help="how many (default: %(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    options = parser.parse_args(arguments)
    if options.images < 1:
        raise InputError(f"--images {options.images}: at least one image is needed")
    options.rounds, options.batches = 6, 40
    options.sides, options.segments = (256, 512, 1024, 2048), (4, 16, 64, 256)
    if options.quick:
        options.images, options.rounds, options.repeats, options.batches = 2, 2, 1, 2
        options.sides, options.segments, options.workers = (256,), (64,), options.workers[:2]
    torch.set_num_threads(1)  # as in a loader's worker
    cv2.setNumThreads(1)
    ways = mappers(load_config(options.config_file))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.data is None:
            records = make_records(folder / "images", options.images, SIZE, SEGMENTS)
        else:
            records = load_ade20k_panoptic(options.data / FOLDER, "train")[: options.images]
        for table in (compare_mappers, compare_stages, compare_workers):
            table(ways, records, options).finish(options.output)
        growth(ways, folder / "growth", options).finish(options.output)


if __name__ == "__main__":
    sys.exit(run_cli(main))
