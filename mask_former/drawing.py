"""A picture of a panoptic result: coloured segments over the image, contours, and labels that can be read.

Shapes: H×W the image, N segments, C classes. Colours are RGB, 0..255. All sizes (fonts, lines) follow the
image's.
"""

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import find_objects

from mask_former.data.id_map import unique_ids

NOTHING = -1  # index of pixels that belong to no segment
LABEL_BACKGROUND = 205  # opacity of label boxes, of 255

Color = tuple[int, int, int]
Box = tuple[int, int, int, int]  # left, top, right, bottom


def draw_panoptic(
    image: np.ndarray,
    id_map: np.ndarray,
    segments: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    colors: Sequence[Sequence[int]],
    alpha: float = 0.5,
    numbers: Sequence[int] | None = None,
) -> np.ndarray:
    """uint8 H×W×3 picture of `segments` ({"id", contiguous "category_id", optional "score"}) over an image.

    `id_map` H×W; ids that no segment has stay unpainted, as void does. `names` and `colors` are those of the
    C classes; further instances of a class get shades of its colour. `alpha` 0 shows the image, 1 the colours
    alone. Segments too small for it, or without room, get no label. `numbers`: which shade of its class each
    segment gets, as in `segment_colors`. ValueError when sizes differ.
    """
    if image.shape != (*id_map.shape, 3) or image.dtype != np.uint8:
        raise ValueError(
            f"need a uint8 image of {id_map.shape} by 3 for this map, not {image.dtype} {image.shape}"
        )
    index = _segment_index(id_map, segments)
    shades = segment_colors([segment["category_id"] for segment in segments], colors, numbers)
    picture = _paint(image, index, shades, alpha)
    _draw_contours(picture, index)
    texts = [label_text(names[segment["category_id"]], segment.get("score")) for segment in segments]
    return _draw_labels(picture, place_labels(index, texts), shades)


def _segment_index(id_map: np.ndarray, segments: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """int32 H×W: position of each pixel's segment in the list, NOTHING where it has none."""
    position = {int(segment["id"]): number for number, segment in enumerate(segments)}
    values, where = unique_ids(id_map)
    return np.array([position.get(value, NOTHING) for value in values.tolist()], dtype=np.int32)[where]


def segment_colors(
    categories: Sequence[int], colors: Sequence[Sequence[int]], numbers: Sequence[int] | None = None
) -> list[Color]:
    """A colour for every segment: its class's for the first of a class, shades of it for the others.

    `numbers` (default: the order within each class) choose the shades, 0 the class's colour itself: pictures
    of one image can show one thing in one shade.
    """
    if numbers is None:
        numbers = [categories[:position].count(category) for position, category in enumerate(categories)]
    return [_shade(colors[category], number) for category, number in zip(categories, numbers, strict=True)]


def _shade(color: Sequence[int], number: int) -> Color:
    """The number-th variant of a colour; near in hue, clearly different in brightness from those before."""
    red, green, blue = (int(channel) for channel in color)
    if number == 0:
        return red, green, blue
    hue, saturation, value = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
    # golden-ratio steps never repeat and spread evenly; ±0.055 of the hue circle stays "the same colour"
    step = number * 0.618033988749895 % 1.0
    hue = (hue + 0.11 * (step - 0.5)) % 1.0
    value = 0.6 + 0.4 * ((value + 0.37 * number) % 1.0)
    saturation = min(1.0, max(saturation, 0.25) * (0.75 + 0.5 * (number * 0.414 % 1.0)))
    shade = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * shade[0]), round(255 * shade[1]), round(255 * shade[2])


def label_text(name: str, score: float | None = None) -> str:
    """Class name and score as one printable line."""
    printable = " ".join(name.encode("utf-8", "replace").decode().split())  # lone surrogates cannot be drawn
    return printable if score is None else f"{printable} {score:.0%}"


def _paint(image: np.ndarray, index: np.ndarray, shades: Sequence[Color], alpha: float) -> np.ndarray:
    table = np.array([*shades, (0, 0, 0)], dtype=np.uint8)  # the last one answers for NOTHING
    blended = cv2.addWeighted(image, 1 - alpha, table[index], alpha, 0)
    return np.where((index == NOTHING)[..., None], image, blended)


def _line_width(height: int, width: int) -> int:
    return max(1, round(min(height, width) / 500))


def _draw_contours(picture: np.ndarray, index: np.ndarray) -> None:
    """A white line between segments with a dark halo, which shows on any colour; in place."""
    edge = np.zeros(index.shape, np.uint8)
    edge[:, 1:] |= index[:, 1:] != index[:, :-1]
    edge[1:] |= index[1:] != index[:-1]
    width = _line_width(*index.shape)
    line = cv2.dilate(edge, np.ones((width, width), np.uint8)) if width > 1 else edge
    halo = cv2.dilate(line, np.ones((3, 3), np.uint8)) - line
    picture[halo > 0] = (picture[halo > 0] * 0.72).astype(np.uint8)
    picture[line > 0] = (picture[line > 0] * 0.2 + 255 * 0.8).astype(np.uint8)


@dataclass(frozen=True)
class Label:
    """A text, the segment it names, and the box it fills (its anchor is the box's centre)."""

    segment: int
    text: str
    box: Box


def place_labels(index: np.ndarray, texts: Sequence[str]) -> list[Label]:
    """Boxes for the texts of segments 0..N-1 of an index map, none over another, all inside the image.

    A label stands at the point of the segment's largest component that is farthest from its border and from
    labels there before. Segments with the least room choose first; those too small for a text get none.
    """
    height, width = index.shape
    font = _font(_font_size(height, width))
    windows = find_objects(index + 1)  # bounding slices of segments 0, 1, ...; None for one without pixels
    spots = []
    for number, window in enumerate(windows[: len(texts)]):
        if window is not None:
            mask = _largest_component(index[window] == number)
            _, radius = _interior_point(mask)
            if mask.sum() >= 1.5 * font.size**2 and radius >= 0.4 * font.size:
                spots.append((radius, number, window, mask))
    placed: list[Label] = []
    for _, number, window, mask in sorted(spots, key=lambda spot: spot[:2]):
        text = _shortened(texts[number], font, width)
        size = _box_size(text, font)
        if size[0] > width or size[1] > height:
            continue
        label = _free_label(number, text, size, window, mask, placed, index.shape)
        if label is not None:
            placed.append(label)
    return placed


def _free_label(
    number: int,
    text: str,
    size: tuple[int, int],
    window: tuple[slice, slice],
    mask: np.ndarray,
    placed: Sequence[Label],
    shape: tuple[int, ...],
) -> Label | None:
    """The label at the first of the mask's interior points where its box touches none of those placed."""
    room = mask.copy()
    top, left = window[0].start, window[1].start
    for _ in range(4):
        (y, x), radius = _interior_point(room)
        if radius <= 0:
            return None
        box = _box_around(left + x, top + y, size, shape)
        hits = [other.box for other in placed if _overlap(box, other.box)]
        if not hits:
            return Label(number, text, box)
        for hit in hits:  # centres this near would collide again
            across, down = size[0] // 2, size[1] // 2
            room[
                max(0, hit[1] - down - top) : max(0, hit[3] + down - top),
                max(0, hit[0] - across - left) : max(0, hit[2] + across - left),
            ] = False
    return None


def _largest_component(mask: np.ndarray) -> np.ndarray:
    """The part of a bool mask that hangs together and has the most pixels."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    if count <= 2:
        return mask
    return labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())


def _interior_point(mask: np.ndarray) -> tuple[tuple[int, int], float]:
    """The (row, column) farthest from the border of a bool mask, and how far that is; 0 for an empty mask."""
    padded = np.pad(mask.astype(np.uint8), 1)  # what lies outside the window is outside the mask
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1]
    row, column = np.unravel_index(int(distance.argmax()), distance.shape)
    return (int(row), int(column)), float(distance[row, column])


def _box_around(x: int, y: int, size: tuple[int, int], shape: tuple[int, ...]) -> Box:
    """A box of this size (width, height) around a point, moved into the image where it would stick out."""
    left = min(max(0, x - size[0] // 2), shape[1] - size[0])
    top = min(max(0, y - size[1] // 2), shape[0] - size[1])
    return left, top, left + size[0], top + size[1]


def _overlap(first: Box, second: Box) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def _font_size(height: int, width: int) -> int:
    return max(9, round(0.021 * (height * width) ** 0.5))


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont:
    # matplotlib ships this font with itself, so that it is the same on every machine
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")), size)


def _padding(font: ImageFont.FreeTypeFont) -> tuple[int, int]:
    return max(2, round(0.4 * font.size)), max(1, round(0.2 * font.size))


def _box_size(text: str, font: ImageFont.FreeTypeFont) -> tuple[int, int]:
    """Width and height of a label; as high for any text of a font."""
    ascent, descent = font.getmetrics()
    across, down = _padding(font)
    return round(font.getlength(text)) + 2 * across, ascent + descent + 2 * down


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, or as much of it with "…" as a label of this width holds; at least a character."""
    if _box_size(text, font)[0] <= width:
        return text
    fits, too_long = 1, len(text)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if _box_size(f"{text[:middle].rstrip()}…", font)[0] <= width:
            fits = middle
        else:
            too_long = middle
    return f"{text[:fits].rstrip()}…"


def _draw_labels(picture: np.ndarray, labels: Sequence[Label], shades: Sequence[Color]) -> np.ndarray:
    """White text on a dark box with a rim of the segment's colour."""
    canvas = Image.fromarray(picture)
    font = _font(_font_size(*picture.shape[:2]))
    layer = ImageDraw.Draw(canvas, "RGBA")
    for label in labels:
        left, top, right, bottom = label.box
        layer.rounded_rectangle(
            (left, top, right - 1, bottom - 1),
            radius=font.size // 3,
            fill=(18, 20, 24, LABEL_BACKGROUND),
            outline=(*shades[label.segment], 255),
            width=_line_width(*picture.shape[:2]),
        )
        across, down = _padding(font)
        layer.text((left + across, top + down), label.text, font=font, fill=(255, 255, 255, 255))
    return np.array(canvas)
