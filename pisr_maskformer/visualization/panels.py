"""Pictures side by side with titles (Figure C.1), and dashed boxes around what deserves a look.

A picture is uint8 H×W×3 RGB; those of one row are brought to one height.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAP = 8
INK, FAINT, PAPER = (25, 25, 28), (110, 110, 116), (255, 255, 255)
Box = tuple[int, int, int, int]  # left, top, right, bottom


@lru_cache(maxsize=16)
def font(size: int) -> ImageFont.FreeTypeFont:
    """The font that matplotlib ships with itself: the same on every machine."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")), size)


def one_line(text: str) -> str:
    """As it can be drawn: no line breaks, nothing that is half a character."""
    return " ".join(text.encode("utf-8", "replace").decode().split())


def fit(text: str, width: float, face: ImageFont.FreeTypeFont) -> str:
    """The text, cut in its middle where it is wider than `width` pixels: both ends of a file name tell."""
    text = one_line(text)
    if face.getlength(text) <= width:
        return text
    for kept in range(len(text) - 1, 0, -1):
        shorter = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
        if face.getlength(shorter) <= width:
            return shorter
    return "…"


def row(pictures: Sequence[np.ndarray], titles: Sequence[str], height: int | None = None) -> np.ndarray:
    """Pictures side by side on white, each under its title; their `height` is by default the first's."""
    height = height or pictures[0].shape[0]
    scaled = [resized_to_height(picture, height) for picture in pictures]
    face = font(max(11, round(height / 26)))
    head = round(1.8 * face.size)
    width = sum(picture.shape[1] for picture in scaled) + GAP * (len(scaled) + 1)
    canvas = Image.new("RGB", (width, head + height + GAP), PAPER)
    layer = ImageDraw.Draw(canvas)
    left = GAP
    for picture, title in zip(scaled, titles, strict=True):
        canvas.paste(Image.fromarray(picture), (left, head))
        layer.text((left, head / 2), fit(title, picture.shape[1], face), fill=INK, font=face, anchor="lm")
        left += picture.shape[1] + GAP
    return np.array(canvas)


def column(rows: Sequence[np.ndarray], heading: str = "") -> np.ndarray:
    """Rows under each other, flush left on white, under an optional heading."""
    width = max(part.shape[1] for part in rows)
    if heading:
        rows = [caption(heading, width), *rows]
    return np.vstack([_to_width(part, width) for part in rows])


def caption(text: str, width: int, size: int | None = None) -> np.ndarray:
    """A line of text as a white strip `width` wide."""
    face = font(size or max(12, min(22, width // 60)))
    strip = Image.new("RGB", (width, round(1.9 * face.size)), PAPER)
    ImageDraw.Draw(strip).text(
        (GAP, strip.height / 2), fit(text, width - 2 * GAP, face), fill=INK, font=face, anchor="lm"
    )
    return np.array(strip)


def blank(like: np.ndarray, text: str) -> np.ndarray:
    """A pale picture of the same size with a text in its middle, where there is nothing to show."""
    canvas = Image.new("RGB", (like.shape[1], like.shape[0]), (242, 242, 244))
    face = font(max(10, round(min(like.shape[:2]) / 18)))
    ImageDraw.Draw(canvas).text(
        (like.shape[1] / 2, like.shape[0] / 2),
        fit(text, like.shape[1] - 8, face),
        fill=FAINT,
        font=face,
        anchor="mm",
    )
    return np.array(canvas)


def draw_boxes(picture: np.ndarray, boxes: Iterable[Box]) -> np.ndarray:
    """A copy with dashed boxes: white dashes on black, which show on any colour."""
    canvas = Image.fromarray(picture)
    layer = ImageDraw.Draw(canvas)
    thin = max(1, round(min(picture.shape[:2]) / 220))
    for left, top, right, bottom in boxes:
        right, bottom = max(left, right - 1), max(top, bottom - 1)
        layer.rectangle((left, top, right, bottom), outline=(0, 0, 0), width=thin + 2)
        inner = thin // 2 + 1
        for start, end in _dashes((left, top, right, bottom), inner, 6 * thin):
            layer.line((*start, *end), fill=(255, 255, 255), width=thin)
    return np.array(canvas)


def _dashes(box: Box, inner: int, length: int) -> Iterable[tuple[tuple[int, int], tuple[int, int]]]:
    left, top, right, bottom = box[0] + inner, box[1] + inner, box[2] - inner, box[3] - inner
    for x in range(left, right, 2 * length):
        end = min(x + length, right)
        yield (x, top), (end, top)
        yield (x, bottom), (end, bottom)
    for y in range(top, bottom, 2 * length):
        end = min(y + length, bottom)
        yield (left, y), (left, end)
        yield (right, y), (right, end)


def resized_to_height(picture: np.ndarray, height: int) -> np.ndarray:
    """The picture at a height, its proportions kept (at least a pixel wide)."""
    if picture.shape[0] == height:
        return picture
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    shrinks = height < picture.shape[0]
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def _to_width(picture: np.ndarray, width: int) -> np.ndarray:
    missing = width - picture.shape[1]
    return np.pad(picture, ((0, 0), (0, missing), (0, 0)), constant_values=255)
