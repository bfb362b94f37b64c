"""One image with what a model computes for it, ready to be drawn.

Shapes: H×W the image in its file; h×w maps at the features' resolution; C classes, N instance slots.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data.catalog import Metadata

from mask_former.data.catalog import thing_ids
from mask_former.data.id_map import read_rgb_image
from mask_former.drawing import draw_panoptic
from mask_former.errors import InputError
from mask_former.prediction import Predictor, class_metadata, panoptic_map
from pisr_maskformer.visualization.differences import PanopticMap
from pisr_maskformer.visualization.heatmaps import min_max, overlay
from pisr_maskformer.visualization.observation import Observation, Stage, observe
from tools.comparison.pictures import resize_image, resize_map, shown_size


class Model:
    """A configured model, its weights and its classes."""

    def __init__(self, cfg: CfgNode, weights: str | Path) -> None:
        self.metadata = class_metadata(cfg)
        self.predictor = Predictor(cfg, weights)
        self.title = f"the model {weights}"

    def look(self, path: Path, internals: bool) -> "Look":
        """`internals`: with what PISR computes on its way. InputError without PISR, or for an unfit image."""
        rgb = read_rgb_image(path)
        sample = self.predictor.mapper.from_image(rgb)
        observation = observe(self.predictor.model, sample, internals, called=self.title)
        return Look(rgb, observation, self.metadata)


@dataclass(frozen=True)
class Look:
    """An image and what was computed for it."""

    rgb: np.ndarray
    observation: Observation
    metadata: Metadata

    @property
    def names(self) -> list[str]:
        return list(self.metadata.stuff_classes)

    @property
    def things(self) -> list[int]:
        return thing_ids(self.metadata)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of every picture."""
        return shown_size(*self.rgb.shape[:2])

    def picture(self) -> np.ndarray:
        """The image itself."""
        return resize_image(self.rgb, self.size)

    def prediction(self) -> np.ndarray:
        """The model's panoptic result over the image."""
        panoptic = PanopticMap(*panoptic_map(dict(self.observation.result)))
        return draw_panoptic(
            self.picture(),
            resize_map(panoptic, self.size).ids,
            panoptic.segments,
            self.names,
            self.metadata.stuff_colors,
        )

    def enlarged(self, values: np.ndarray) -> np.ndarray:
        """An h×w map at the pictures' size, its values as they are."""
        on_image = self.observation.on_image(values)
        return cv2.resize(on_image, (self.size[1], self.size[0]), interpolation=cv2.INTER_LINEAR)

    def heat(self, values: np.ndarray, normalise: bool = True) -> np.ndarray:
        """An h×w map as colours over the image: between its own extremes, or as values of 0..1."""
        values = self.enlarged(values)
        return overlay(self.picture(), min_max(values) if normalise else values)

    def stages(self) -> dict[str, Stage]:
        """Before and after PISR, by title."""
        return {"before PISR": self.observation.initial, "after PISR": self.observation.final}

    def chosen_class(self, wanted: str | None, only_things: bool = False) -> int:
        """The class called `wanted`, else that of most pixels in the prediction; InputError without one."""
        if wanted is not None:
            return class_index(wanted, self.names)
        found = self.observation.inside(self.observation.final.class_map())
        if only_things:
            found = found[np.isin(found, self.things)]
        if found.size == 0:
            raise InputError("no thing is predicted on this image; name a class with --class")
        return int(np.bincount(found.ravel()).argmax())

    def internal(self, name: str) -> np.ndarray:
        """One of PISRInternals; InputError when the variant of PISR has no such thing."""
        values = self.observation.internals[name]
        if values is None:
            settings = (
                "MODEL.PISR.REWEIGHTING explicit" if name == "weights" else "MODEL.PISR.RELATION attention"
            )
            raise InputError(
                f"this variant of PISR computes no {name.replace('_', ' ')}; it takes {settings}"
            )
        return values


@dataclass(frozen=True)
class View:
    """What a sub-command makes: a picture, and the numbers behind it."""

    picture: np.ndarray
    arrays: Mapping[str, Any]


def class_index(wanted: str, names: list[str]) -> int:
    """Position of a class by its name, or by its number; InputError names those that are near."""
    lowered = [name.strip().casefold() for name in names]
    if wanted.strip().casefold() in lowered:
        return lowered.index(wanted.strip().casefold())
    if wanted.isdecimal() and int(wanted) < len(names):
        return int(wanted)
    near = difflib.get_close_matches(wanted.casefold(), lowered, n=3) or lowered[:3]
    raise InputError(
        f"no class is called {wanted!r}; there are {', '.join(near)}, ... ({len(names)} classes)"
    )


def figure_pixels(figure: Any) -> np.ndarray:
    """A matplotlib figure as uint8 H×W×3."""
    figure.canvas.draw()
    return np.array(figure.canvas.buffer_rgba())[..., :3]
