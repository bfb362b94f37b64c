"""A MaskFormer small enough for tests: width 32, three decoder layers, ten queries, five classes.

Shapes: B batch · n segments · H W image size.
"""

from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_model
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn import functional as F

from mask_former import add_mask_former_config
from mask_former.data.catalog import panoptic_metadata

DATASET = "tests_tiny_panoptic"
NUM_CLASSES = 5
THINGS = [1, 3]  # contiguous ids
NUM_QUERIES = 10
DECODER_LAYERS = 3

PLAIN = {
    "MODEL.DEVICE": "cpu",
    "MODEL.META_ARCHITECTURE": "MaskFormer",
    "MODEL.WEIGHTS": "",
    "MODEL.BACKBONE.NAME": "TinyBackbone",
    "MODEL.SEM_SEG_HEAD.NAME": "MaskFormerHead",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": NUM_CLASSES,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 32,
    "MODEL.SEM_SEG_HEAD.NORM": "GN",
    "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
    "MODEL.MASK_FORMER.NHEADS": 4,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 64,
    "MODEL.MASK_FORMER.DEC_LAYERS": DECODER_LAYERS,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": NUM_QUERIES,
    "MODEL.MASK_FORMER.DROPOUT": 0.0,
    "DATASETS.TRAIN": (DATASET,),
}
# The queries read the output of an encoder in the pixel decoder, as in the panoptic ADE20K models.
ENCODER = {
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "TransformerEncoderPixelDecoder",
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "transformer_encoder",
}


def resnet(depth: int) -> dict[str, Any]:
    """Changes that give the tiny model one of detectron2's ResNets."""
    return {
        "MODEL.BACKBONE.NAME": "build_resnet_backbone",
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.RESNETS.DEPTH": depth,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64 if depth < 50 else 256,
        "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    }


@BACKBONE_REGISTRY.register()
class TinyBackbone(Backbone):
    """One convolution a level: features at strides 4, 8, 16 and 32 with 8, 16, 24 and 40 channels."""

    CHANNELS = {"res2": 8, "res3": 16, "res4": 24, "res5": 40}

    def __init__(self, cfg: CfgNode, input_shape: ShapeSpec) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, kernel_size=3, stride=2, padding=1)
        inputs = [8, *self.CHANNELS.values()]
        self.levels = nn.ModuleDict(
            {
                name: nn.Conv2d(below, channels, kernel_size=3, stride=2, padding=1)
                for below, (name, channels) in zip(inputs, self.CHANNELS.items(), strict=False)
            }
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.stem(x))
        features = {}
        for name, level in self.levels.items():
            x = features[name] = F.relu(level(x))
        return features

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(channels=channels, stride=4 * 2**i)
            for i, (name, channels) in enumerate(self.CHANNELS.items())
        }


def register_dataset() -> None:
    """A data set without images whose classes are those of the tiny model."""
    if DATASET not in DatasetCatalog.list():
        DatasetCatalog.register(DATASET, lambda: [])
        categories = [{"id": i + 1, "name": f"class {i}", "isthing": i in THINGS} for i in range(NUM_CLASSES)]
        MetadataCatalog.get(DATASET).set(**panoptic_metadata(categories))


def tiny_config(changes: dict[str, Any] | None = None) -> CfgNode:
    """The tiny model's configuration, with `changes`: dotted key to value."""
    register_dataset()
    cfg = get_cfg()
    add_mask_former_config(cfg)
    for key, value in {**PLAIN, **(changes or {})}.items():
        cfg.merge_from_list([key, value])
    return cfg


def tiny_model(changes: dict[str, Any] | None = None, seed: int = 0) -> nn.Module:
    """The tiny model in training mode, with the same random weights every time."""
    torch.manual_seed(seed)
    return build_model(tiny_config(changes))


def sample(seed: int = 0, height: int = 64, width: int = 64, segments: int = 3) -> dict[str, Any]:
    """A training sample: noise, brighter downwards, in `segments` horizontal bands of random classes.

    With `segments` 0 it has no ground truth: gt_masks are 0×H×W.
    """
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 128, (3, height, width), generator=generator)
    bands = torch.arange(height) * max(segments, 1) // height
    image += (bands * 128 // max(segments, 1))[None, :, None]
    instances = Instances((height, width))
    instances.gt_classes = torch.randint(0, NUM_CLASSES, (segments,), generator=generator)
    instances.gt_masks = (bands[None] == torch.arange(segments)[:, None])[:, :, None].repeat(1, 1, width)
    return {
        "image": image.to(torch.uint8),
        "instances": instances,
        "height": height,
        "width": width,
        "file_name": f"band_{seed}.png",
        "image_id": seed,
    }


def image_only(training_sample: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A sample as evaluation has it: without ground truth, and a wanted size only if `more` gives it."""
    return {"image": training_sample["image"], **more}
