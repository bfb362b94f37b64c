"""The pictures of one image: input, truth, both predictions, thumbnails, heatmaps, the panel (Figure C.1).

Shapes: H×W the image; h×w as it is shown. Colours belong to classes; one thing has one shade in all pictures.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data.catalog import Metadata
from PIL import Image

from mask_former.atomic_write import replace_file
from mask_former.drawing import draw_panoptic
from pisr_maskformer.visualization import panels
from pisr_maskformer.visualization.differences import Box, PanopticMap, matched_segments
from pisr_maskformer.visualization.heatmaps import min_max, overlay
from pisr_maskformer.visualization.observation import Observation

FOLDER = "images"
SHOWN = (512, 1024)  # the longer side of a picture: smaller images are enlarged, larger ones reduced
THUMBNAIL = 320
PANEL_HEIGHT = 320
QUALITY = 88


def shown_size(height: int, width: int) -> tuple[int, int]:
    """(h, w) at which an image is shown."""
    longer = max(height, width)
    scale = min(max(longer, SHOWN[0]), SHOWN[1]) / longer
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize_image(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 h×w×3."""
    if rgb.shape[:2] == size:
        return rgb
    method = cv2.INTER_AREA if size[0] < rgb.shape[0] else cv2.INTER_CUBIC
    return cv2.resize(rgb, (size[1], size[0]), interpolation=method)


def resize_map(panoptic: PanopticMap, size: tuple[int, int]) -> PanopticMap:
    """The map at h×w, every pixel the id of the nearest one."""
    rows, columns = ((np.arange(new) * old // new) for new, old in zip(size, panoptic.ids.shape, strict=True))
    return PanopticMap(panoptic.ids[rows][:, columns], panoptic.segments)


def shade_numbers(maps: Sequence[PanopticMap]) -> list[list[int]]:
    """Which shade of its class each segment of each map gets: one thing has one shade in all of them.

    A segment takes the shade of its partner in the first map where it has one, else a shade nobody has.
    """
    chosen: list[list[int]] = []
    next_free: Counter[int] = Counter()
    for current in maps:
        numbers: dict[int, int] = {}  # by the position of the segment
        for earlier, theirs in zip(maps, chosen, strict=False):
            taken = {(current.segments[at]["category_id"], number) for at, number in numbers.items()}
            others = [
                at
                for at, segment in enumerate(earlier.segments)
                if (segment["category_id"], theirs[at]) not in taken
            ]
            left = [at for at in range(len(current.segments)) if at not in numbers]
            partners = matched_segments(_part(earlier, others), _part(current, left)).tolist()
            numbers |= {
                at: theirs[others[partner]]
                for at, partner in zip(left, partners, strict=True)
                if partner >= 0
            }
        for at, segment in enumerate(current.segments):
            if at not in numbers:
                numbers[at] = next_free[segment["category_id"]]
                next_free[segment["category_id"]] += 1
        chosen.append([numbers[at] for at in range(len(current.segments))])
    return chosen


def _part(panoptic: PanopticMap, positions: Sequence[int]) -> PanopticMap:
    """The map with some of its segments; the others are void."""
    return PanopticMap(panoptic.ids, [panoptic.segments[at] for at in positions])


class Painter:
    """Draws the panoptic maps of one image, all with the same shades."""

    def __init__(self, rgb: np.ndarray, maps: Mapping[str, PanopticMap], metadata: Metadata) -> None:
        """`maps` by kind; the first chooses its shades."""
        self.rgb, self.maps = rgb, maps
        self.numbers = dict(zip(maps, shade_numbers(list(maps.values())), strict=True))
        self.names, self.colors = metadata.stuff_classes, metadata.stuff_colors

    def __call__(self, kind: str, size: tuple[int, int]) -> np.ndarray:
        """uint8 h×w×3."""
        panoptic = self.maps[kind]
        return draw_panoptic(
            resize_image(self.rgb, size),
            resize_map(panoptic, size).ids,
            panoptic.segments,
            self.names,
            self.colors,
            numbers=self.numbers[kind],
        )


def telling_class(first: PanopticMap, second: PanopticMap, differs: np.ndarray) -> int | None:
    """The class with the most pixels where `differs` (bool H×W), else at all; None without segments."""
    for where in (differs, np.ones_like(differs)):
        classes = np.concatenate([part.classes()[part.positions()][where] for part in (first, second)])
        counts = np.bincount(classes[classes >= 0])
        if counts.any():
            return int(counts.argmax())
    return None


def heatmap_pictures(rgb: np.ndarray, observation: Observation, category: int) -> dict[str, np.ndarray]:
    """S_c of one class before and after PISR, each between its own extremes, over the image (E.1)."""
    size = shown_size(*rgb.shape[:2])
    shown = resize_image(rgb, size)
    stages = {"before": observation.initial, "after": observation.final}
    pictures = {}
    for name, stage in stages.items():
        heat = min_max(observation.on_image(stage.semantic_heatmap(category)))
        pictures[name] = overlay(shown, cv2.resize(heat, (size[1], size[0])))
    return pictures


def scale_boxes(shares: Sequence[Sequence[float]], size: tuple[int, int]) -> list[Box]:
    """Boxes given as shares of the image's sides, in pixels of a picture of h×w."""
    height, width = size
    return [
        (round(left * width), round(top * height), round(right * width), round(bottom * height))
        for left, top, right, bottom in shares
    ]


def draw_image(
    painter: Painter, titles: Mapping[str, str], boxes: Sequence[Sequence[float]]
) -> dict[str, np.ndarray]:
    """Picture by kind: "input", those of the painter, "panel", and "thumb_SIDE" of both sides."""
    size = shown_size(*painter.rgb.shape[:2])
    drawn = {"input": resize_image(painter.rgb, size)}
    drawn |= {kind: painter(kind, size) for kind in painter.maps}
    outlines = scale_boxes(boxes, size)
    marked = [
        panels.draw_boxes(picture, outlines) if kind in ("baseline", "pisr") else picture
        for kind, picture in drawn.items()
    ]
    small = tuple(max(1, round(side * THUMBNAIL / max(size))) for side in size)
    return {
        **drawn,
        "panel": panels.row(marked, [titles[kind] for kind in drawn], height=PANEL_HEIGHT),
        **{f"thumb_{kind}": painter(kind, (small[0], small[1])) for kind in ("baseline", "pisr")},
    }


def write_pictures(output: Path, stem: str, pictures: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Write images/STEM_KIND.jpg; returns the files' names relative to `output`, by kind."""
    (output / FOLDER).mkdir(exist_ok=True)
    files = {}
    for kind, picture in pictures.items():
        files[kind] = f"{FOLDER}/{stem}_{kind}.jpg"
        write_jpeg(output / files[kind], picture)
    return files


def write_jpeg(path: Path, picture: np.ndarray) -> None:
    """Write uint8 H×W×3; the file appears whole or not at all."""
    with replace_file(path) as file:
        Image.fromarray(picture).save(file, format="JPEG", quality=QUALITY)


def end_sheet(output: Path, records: Sequence[Mapping[str, Any]], heading: str) -> np.ndarray:
    """The panels of some images under each other, each with its name and what changed."""
    rows = []
    for record in records:
        with Image.open(output / record["pictures"]["panel"]) as picture:
            panel = np.array(picture.convert("RGB"))
        rows += [panels.caption(describe(record), panel.shape[1], size=14), panel]
    return panels.column(rows, heading)


def describe(record: Mapping[str, Any]) -> str:
    """One image's name and numbers in a line."""
    pq = record.get("pq") or {}
    if pq.get("baseline") is None or pq.get("pisr") is None:
        return f"{record['name']} · {record['changed']:.0%} of the image differs"
    change = pq["pisr"] - pq["baseline"]
    return f"{record['name']} · PQ {pq['baseline']:.1f} → {pq['pisr']:.1f} ({change:+.1f})"
