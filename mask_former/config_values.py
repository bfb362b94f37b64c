"""Values that a configuration may hold, beyond their type: checked when it is loaded, before all else.

What would otherwise end as an error from the depths of detectron2, or as a run that learns nothing, is one
line with the key and what is valid. Optimisers, mappers and the variants of MODEL.PISR are checked where
they are chosen.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY

from mask_former.errors import InputError
from mask_former.optimizer import MULTIPLIER
from mask_former.registries import choose

GROUPS = 32  # of detectron2's group norm
NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")
RESNET_OUTPUTS = ("stem", "res2", "res3", "res4", "res5")

AT_LEAST_ONE = (
    "INPUT.MAX_SIZE_TEST",
    "INPUT.MAX_SIZE_TRAIN",
    "LOG.PERIOD",
    "MODEL.MASK_FORMER.DEC_LAYERS",
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD",
    "MODEL.MASK_FORMER.HIDDEN_DIM",
    "MODEL.MASK_FORMER.NHEADS",
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES",
    "MODEL.SEM_SEG_HEAD.CONVS_DIM",
    "MODEL.SEM_SEG_HEAD.MASK_DIM",
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
    "SOLVER.ACCUMULATION_STEPS",
    "SOLVER.IMS_PER_BATCH",
    "SOLVER.MAX_ITER",
)
NOT_NEGATIVE = (
    "DATALOADER.NUM_WORKERS",
    "INPUT.MIN_SIZE_TEST",
    "MODEL.BACKBONE.FREEZE_AT",
    "MODEL.MASK_FORMER.DICE_WEIGHT",
    "MODEL.MASK_FORMER.ENC_LAYERS",
    "MODEL.MASK_FORMER.MASK_WEIGHT",
    "MODEL.MASK_FORMER.NO_OBJECT_WEIGHT",
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS",
    "SOLVER.BASE_LR",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.KEEP_CHECKPOINTS",
    "SOLVER.MOMENTUM",
    "SOLVER.POLY_LR_CONSTANT_ENDING",
    "SOLVER.POLY_LR_POWER",
    "SOLVER.WARMUP_FACTOR",
    "SOLVER.WARMUP_ITERS",
    "SOLVER.WEIGHT_DECAY",
    "SOLVER.WEIGHT_DECAY_EMBED",
    "SOLVER.WEIGHT_DECAY_NORM",
    "TEST.EVAL_PERIOD",
)
SHARES = (
    "MODEL.MASK_FORMER.DROPOUT",
    "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD",
    "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD",
)
CHOICES: dict[str, tuple[str | int, ...]] = {
    "DATALOADER.SAMPLER_TRAIN": ("TrainingSampler",),
    "INPUT.CROP.TYPE": ("absolute", "absolute_range", "relative", "relative_range"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "MODEL.RESNETS.DEPTH": (18, 34, 50, 101, 152),
    "MODEL.RESNETS.NORM": NORMS,
    "MODEL.SEM_SEG_HEAD.NORM": NORMS,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("full_model", "norm", "value"),
    "SOLVER.LR_SCHEDULER_NAME": (
        "WarmupPolyLR",
        "WarmupCosineLR",
        "WarmupMultiStepLR",
        "WarmupStepWithFixedGammaLR",
    ),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
}
REGISTRIES = {
    "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.SEM_SEG_HEAD.NAME": SEM_SEG_HEADS_REGISTRY,
}

Rule = tuple[Callable[[Any], bool], str]  # whether a value is valid, and what to say when it is not


def check_values(cfg: CfgNode) -> None:
    """InputError at the first value that can mean nothing, with its key and what is valid."""
    multipliers = {f"SOLVER.{name}": NUMBER for name in cfg.SOLVER if name.endswith(MULTIPLIER)}
    for key, (is_valid, mend) in (RULES | multipliers).items():
        if not is_valid(value_of(cfg, key)):
            raise InputError(f"{key} is {value_of(cfg, key)!r}; {mend}")
    for key, registry in REGISTRIES.items():
        choose(registry, value_of(cfg, key), key)
    head = cfg.MODEL.SEM_SEG_HEAD
    if head.NORM == "GN" and head.CONVS_DIM % GROUPS:
        raise InputError(
            f"MODEL.SEM_SEG_HEAD.CONVS_DIM is {head.CONVS_DIM}; with NORM GN it must be divisible by {GROUPS}"
        )


def value_of(cfg: CfgNode, key: str) -> Any:
    """The value of a dotted key such as SOLVER.BASE_LR."""
    value: Any = cfg
    for part in key.split("."):
        value = value[part]
    return value


def _is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """True for a finite number of `low`..`high`."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and low <= value <= high


def _are_numbers(values: Iterable[Any], count: int, positive: bool) -> bool:
    """True for `count` numbers."""
    items = list(values)
    return len(items) == count and all(_is_number(item) and (item > 0 or not positive) for item in items)


def _are_sizes(values: Any) -> bool:
    """True for one number of 0 or more (detectron2 leaves images as they are at 0), or a list of them."""
    items = list(values) if isinstance(values, list | tuple) else [values]
    return bool(items) and all(_is_number(item, low=0) for item in items)


def _are_names(values: Iterable[Any]) -> bool:
    return all(isinstance(name, str) and name for name in values)


def _is_device(name: str) -> bool:
    try:
        torch.device(name)
    except RuntimeError:
        return False
    return True


NUMBER: Rule = (lambda value: _is_number(value, low=0), "it must be a number of 0 or more")


def _rules() -> dict[str, Rule]:
    rules: dict[str, Rule] = {}
    for key in AT_LEAST_ONE:
        rules[key] = (lambda value: _is_number(value, low=1), "it must be at least 1")
    for key in NOT_NEGATIVE:
        rules[key] = NUMBER
    for key in SHARES:
        rules[key] = (lambda value: _is_number(value, low=0, high=1), "it must be a number of 0..1")
    for key, valid in CHOICES.items():
        rules[key] = (valid.__contains__, f"use one of: {', '.join(str(name) or repr('') for name in valid)}")
    positive = (lambda value: value > 0, "it must be positive")
    names = (_are_names, "it must list names of data sets")
    return rules | {
        "DATASETS.TEST": names,
        "DATASETS.TRAIN": names,
        "INPUT.CROP.SIZE": (
            lambda value: _are_numbers(value, 2, positive=True),
            "it must be two positive numbers",
        ),
        "INPUT.MIN_SIZE_TRAIN": (_are_sizes, "it must list numbers of pixels, one at least"),
        "MODEL.DEVICE": (_is_device, "it must be cuda, cuda:N, cpu or another device that torch knows"),
        "MODEL.PIXEL_MEAN": (
            lambda value: _are_numbers(value, 3, positive=False),
            "it must be three numbers",
        ),
        "MODEL.PIXEL_STD": (
            lambda value: _are_numbers(value, 3, positive=True),
            "it must be three positive numbers",
        ),
        "MODEL.RESNETS.OUT_FEATURES": (
            set(RESNET_OUTPUTS).issuperset,
            f"use only: {', '.join(RESNET_OUTPUTS)}",
        ),
        "OUTPUT_DIR": (bool, "name a folder"),
        "SEED": (lambda value: value < 2**32, "it must be less than 2**32 (negative: another one each time)"),
        "SOLVER.ADAM_EPS": positive,
        "SOLVER.CLIP_GRADIENTS.NORM_TYPE": positive,
    }


RULES = _rules()
