"""From a data set's record to a sample: read, augment, build targets. A class per INPUT.DATASET_MAPPER_NAME.

Shape legend: H×W the image after augmentation and padding, n the segments that are left in it.
A training sample is a dict:
    image      uint8 tensor 3×H×W, 0..255, RGB (INPUT.FORMAT "BGR" reverses the channels)
    instances  Instances of size H×W: gt_classes int64 (n,), gt_masks bool n×H×W; no mask is empty, n may be 0
    sem_seg    int64 H×W, ignore_label where void (semantic mapper only)
    unpadded_size  (height, width) of the image without padding, its top left corner; H×W when there is none
    height, width (of the image in the file), file_name, image_id
A test sample has no instances, and keeps all other entries of the record for the evaluators.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.structures import Instances

from mask_former.data.augmentations import (
    SegmentInput,
    Step,
    crop_augmentations,
    detr_augmentations,
    size_before_padding,
)
from mask_former.data.id_map import find_runs, read_rgb_image
from mask_former.data.resize import require_pixels
from mask_former.data.segments import (
    VOID_INDEX,
    SegmentMap,
    read_panoptic_segments,
    read_semantic_segments,
    require_same_size,
    semantic_label_file,
)
from mask_former.errors import InputError

Sample = dict[str, Any]


class TrainingMapper:
    """Read an image and its label, augment both, build the targets; subclasses say how the label is read."""

    def __init__(
        self,
        *,
        augmentations: Sequence[Step],
        num_classes: int,
        ignore_label: int = 255,
        image_format: str = "RGB",
    ) -> None:
        self.augmentations = T.AugmentationList(augmentations)
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.image_format = image_format

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> "TrainingMapper":
        """The mapper with the augmentation of cfg.INPUT and the classes of cfg.MODEL.SEM_SEG_HEAD."""
        if not is_train:
            raise ValueError(f"{cls.__name__} is for training; testing uses {TestMapper.__name__}")
        return cls(
            augmentations=cls.augmentations_from_config(cfg),
            num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            ignore_label=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            image_format=_image_format(cfg),
        )

    @staticmethod
    def augmentations_from_config(cfg: CfgNode) -> list[Step]:
        return crop_augmentations(
            **_resize_and_flip(cfg),
            single_category_max_area=cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA,
            color_jitter=cfg.INPUT.COLOR_AUG_SSD,
            pad_divisor=cfg.INPUT.SIZE_DIVISIBILITY,
        )

    def label_file(self, record: Mapping[str, Any]) -> str:
        """The label to read; InputError when the record has none of the kind."""
        raise NotImplementedError

    def read_segments(self, record: Mapping[str, Any]) -> SegmentMap:
        raise NotImplementedError

    def __call__(self, record: Mapping[str, Any]) -> Sample:
        """The sample of one record (see the module's docstring); InputError says what is wrong with it."""
        image, label_file = read_rgb_image(record["file_name"]), self.label_file(record)
        segments = self.read_segments(record)
        require_same_size(segments.index.shape, image.shape[:2], label_file, record["file_name"])
        augmented = SegmentInput(image, segments)
        try:
            transforms = self.augmentations(augmented)
        except InputError as error:
            raise InputError(f"{record['file_name']}: {error}") from error
        segments = SegmentMap(augmented.sem_seg, segments.classes)
        return {
            "image": image_tensor(augmented.image, self.image_format),
            "instances": build_targets(segments),
            "unpadded_size": size_before_padding(transforms, augmented.image.shape[:2]),
            "height": image.shape[0],
            "width": image.shape[1],
            "file_name": record["file_name"],
            "image_id": _image_id(record),
            **self.more_targets(segments),
        }

    def more_targets(self, segments: SegmentMap) -> Sample:
        """Further entries of the sample, from the augmented segments."""
        return {}


class PanopticMapper(TrainingMapper):
    """One target per segment of the panoptic label; crowd regions are void."""

    def label_file(self, record: Mapping[str, Any]) -> str:
        if "pan_seg_file_name" not in record:
            raise InputError(
                f"{record['file_name']}: its data set has no panoptic labels; use one that has, or set "
                f"INPUT.DATASET_MAPPER_NAME to mask_former_semantic"
            )
        return record["pan_seg_file_name"]

    def read_segments(self, record: Mapping[str, Any]) -> SegmentMap:
        return read_panoptic_segments(record, self.num_classes)


class DetrPanopticMapper(PanopticMapper):
    """The same targets with DETR's augmentation (COCO)."""

    @staticmethod
    def augmentations_from_config(cfg: CfgNode) -> list[Step]:
        return detr_augmentations(**_resize_and_flip(cfg))


class SemanticMapper(TrainingMapper):
    """One target per class that is present in the semantic label, and the label itself."""

    def label_file(self, record: Mapping[str, Any]) -> str:
        return semantic_label_file(record)

    def read_segments(self, record: Mapping[str, Any]) -> SegmentMap:
        return read_semantic_segments(record, self.num_classes, self.ignore_label)

    def more_targets(self, segments: SegmentMap) -> Sample:
        return {"sem_seg": torch.from_numpy(segments.class_map(void=self.ignore_label))}


class TestMapper:
    """The image at test size; `height` and `width` are the file's, to which predictions are resized."""

    __test__: ClassVar[bool] = False  # pytest would take the name for a test

    def __init__(self, *, min_size: int, max_size: int, image_format: str = "RGB") -> None:
        self.resize = T.ResizeShortestEdge(min_size, max_size, "choice")
        self.image_format = image_format

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = False) -> "TestMapper":
        if is_train:
            raise InputError(
                f"INPUT.DATASET_MAPPER_NAME is 'test', but training needs one of {_training_names()}"
            )
        return cls(
            min_size=cfg.INPUT.MIN_SIZE_TEST,
            max_size=cfg.INPUT.MAX_SIZE_TEST,
            image_format=_image_format(cfg),
        )

    def __call__(self, record: Mapping[str, Any]) -> Sample:
        """The record with the model's input; InputError names the file."""
        rgb = read_rgb_image(record["file_name"])
        try:
            sample = self.from_image(rgb)
        except InputError as error:
            raise InputError(f"{record['file_name']}: {error}") from error
        return {**record, **sample, "image_id": _image_id(record)}

    def from_image(self, rgb: np.ndarray) -> Sample:
        """The model's input for a uint8 H×W×3 RGB image: `image` at test size, `height` and `width` as given.

        InputError when the image is too narrow to be resized.
        """
        height, width = rgb.shape[:2]
        resize = self.resize.get_transform(rgb)
        require_pixels(resize, rgb)
        image = image_tensor(resize.apply_image(rgb), self.image_format)
        return {"image": image, "height": height, "width": width}


MAPPERS: dict[str, type[TrainingMapper] | type[TestMapper]] = {
    "mask_former_semantic": SemanticMapper,
    "mask_former_panoptic": PanopticMapper,
    "detr_panoptic": DetrPanopticMapper,
    "test": TestMapper,
}


def build_mapper(cfg: CfgNode, is_train: bool) -> Callable[[Mapping[str, Any]], Sample]:
    """INPUT.DATASET_MAPPER_NAME's mapper for training, else the test mapper; InputError on unknown names."""
    name = cfg.INPUT.DATASET_MAPPER_NAME if is_train else "test"
    if name not in MAPPERS:
        raise InputError(f"INPUT.DATASET_MAPPER_NAME is {name!r}, but must be one of {_training_names()}")
    return MAPPERS[name].from_config(cfg, is_train)


def build_targets(segments: SegmentMap) -> Instances:
    """Masks of the segments that still have pixels; the others (cropped away) would be empty targets."""
    index = np.ascontiguousarray(segments.index)
    values = find_runs(index).values
    present = values[values != VOID_INDEX]
    targets = Instances(index.shape)
    targets.gt_classes = torch.from_numpy(segments.classes[present.astype(np.int64) - 1])
    # numpy compares numbers of one byte 32 at a time, many times faster than PyTorch
    targets.gt_masks = torch.from_numpy(index == present[:, None, None])
    return targets


def _resize_and_flip(cfg: CfgNode) -> dict[str, Any]:
    """What both kinds of training augmentation read from cfg.INPUT."""
    return {
        "min_sizes": cfg.INPUT.MIN_SIZE_TRAIN,
        "max_size": cfg.INPUT.MAX_SIZE_TRAIN,
        "sampling": cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING,
        "crop": (cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE) if cfg.INPUT.CROP.ENABLED else None,
        "flip": cfg.INPUT.RANDOM_FLIP,
    }


def _image_format(cfg: CfgNode) -> str:
    if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
        raise InputError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r}, but must be RGB or BGR")
    return cfg.INPUT.FORMAT


def image_tensor(image: np.ndarray, image_format: str) -> torch.Tensor:
    """uint8 3×H×W tensor of its own memory from H×W×3 RGB."""
    planes = np.empty((3, *image.shape[:2]), np.uint8)
    cv2.split(np.ascontiguousarray(image), list(planes[::-1] if image_format == "BGR" else planes))
    return torch.from_numpy(planes)


def _image_id(record: Mapping[str, Any]) -> int | str:
    return record.get("image_id", Path(record["file_name"]).stem)


def _training_names() -> str:
    return ", ".join(name for name, mapper in MAPPERS.items() if mapper is not TestMapper)
