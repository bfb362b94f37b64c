"""Every configuration key MaskFormer adds to detectron2's, with its default and meaning, once.

Names and defaults under MODEL.MASK_FORMER, MODEL.SEM_SEG_HEAD, SOLVER and INPUT are those of the official
configurations and checkpoints, so that both drop in; what is ours alone is marked "(ours)".
"""

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, get_cfg
from detectron2.projects.deeplab import add_deeplab_config

from mask_former.config_values import check_values
from mask_former.errors import InputError
from mask_former.yaml_config import read_yaml_with_base


def add_mask_former_config(cfg: CfgNode) -> None:
    """Add every MaskFormer key to a detectron2 configuration, in place."""
    add_deeplab_config(cfg)  # poly schedule, category-area crop, dilated ResNet
    _add_model_config(cfg)
    _add_data_config(cfg)
    _add_solver_config(cfg)
    _add_test_config(cfg)
    _add_log_config(cfg)


def _add_model_config(cfg: CfgNode) -> None:
    model = cfg.MODEL.MASK_FORMER = CfgNode()
    # Loss: cross-entropy has weight 1; the two mask losses these; True supervises every decoder layer.
    model.DEEP_SUPERVISION = True
    model.NO_OBJECT_WEIGHT = 0.1
    model.DICE_WEIGHT = 1.0
    model.MASK_WEIGHT = 20.0
    # Query decoder. ENC_LAYERS adds encoder layers in front of it (0 for all published models).
    model.NHEADS = 8
    model.DROPOUT = 0.1
    model.DIM_FEEDFORWARD = 2048
    model.ENC_LAYERS = 0
    model.DEC_LAYERS = 6
    model.PRE_NORM = False
    model.HIDDEN_DIM = 256
    model.NUM_OBJECT_QUERIES = 100
    # What the queries attend to: a backbone output or the pixel decoder's "transformer_encoder".
    model.TRANSFORMER_IN_FEATURE = "res5"
    # Project it to HIDDEN_DIM even when it has that many channels already.
    model.ENFORCE_INPUT_PROJ = False
    # Images are padded to a multiple of this; 0 or less: to the multiple the backbone asks for.
    model.SIZE_DIVISIBILITY = 32
    model.PREDICTOR_NAME = "TransformerPredictor"  # (ours) in mask_former.registries.PREDICTOR_REGISTRY
    model.CRITERION_NAME = "SetCriterion"  # (ours) in mask_former.registries.CRITERION_REGISTRY

    test = model.TEST = CfgNode()
    test.SEMANTIC_ON = True  # (ours)
    test.PANOPTIC_ON = False
    test.INSTANCE_ON = False  # (ours)
    test.OBJECT_MASK_THRESHOLD = 0.0  # panoptic: queries scoring this or less are not drawn
    test.OVERLAP_THRESHOLD = 0.0  # panoptic: least share of a mask that must win its pixels
    # Resize masks to the requested size before mixing classes (always done for panoptic models).
    test.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE = False

    head = cfg.MODEL.SEM_SEG_HEAD
    head.MASK_DIM = 256  # channels of the per-pixel embeddings
    head.TRANSFORMER_ENC_LAYERS = 0  # encoder layers of TransformerEncoderPixelDecoder
    head.PIXEL_DECODER_NAME = "BasePixelDecoder"

    timm = cfg.MODEL.TIMM = CfgNode()  # (ours) read by the backbone build_timm_backbone
    timm.NAME = ""  # any timm model with features at strides 4, 8, 16 and 32
    timm.WEIGHTS = ""  # a local file; "" starts at random
    timm.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    timm.FREEZE_BN = True  # fix batch-norm statistics and affine parameters, as detectron2's ResNets do

    # (ours) Entries of MODEL.WEIGHTS whose shape does not fit are refused, unless True: then they start anew.
    cfg.MODEL.WEIGHTS_SKIP_MISMATCH = False


def _add_data_config(cfg: CfgNode) -> None:
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    cfg.INPUT.COLOR_AUG_SSD = False
    cfg.INPUT.SIZE_DIVISIBILITY = -1  # the mapper pads crops to this size; -1: no padding
    # (ours) Panoptic data sets by configuration alone: NAME -> {IMAGES, JSON, PNGS}, in COCO's panoptic
    # format; paths relative to $DETECTRON2_DATASETS (default ./datasets).
    cfg.DATASETS.COCO_PANOPTIC = CfgNode(new_allowed=True)


def _add_solver_config(cfg: CfgNode) -> None:
    cfg.SOLVER.OPTIMIZER = "ADAMW"  # or "SGD"
    # (ours) Of ADAMW. Clipping as hard as the recipe's leaves a part of the gradient smaller than that.
    cfg.SOLVER.ADAM_EPS = 1e-8
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1  # learning rate of the backbone relative to BASE_LR
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0  # learned embeddings; norms follow WEIGHT_DECAY_NORM
    cfg.SOLVER.AMP.DTYPE = "float16"  # (ours) or "bfloat16"
    # (ours) With AMP: convolutions of the backbone on channels-last memory, which low precision is fast on.
    cfg.SOLVER.AMP.CHANNELS_LAST = True
    # (ours) Compile network and mask losses by torch.compile: the first steps take minutes.
    cfg.SOLVER.COMPILE = False
    # (ours) Micro-batches that every process makes of its share of IMS_PER_BATCH images: as many times less
    # memory, the same losses and gradients (batch norms that are not frozen excepted).
    cfg.SOLVER.ACCUMULATION_STEPS = 1
    # (ours) Periodic checkpoints that stay (0: all); model_final and model_best do not count.
    cfg.SOLVER.KEEP_CHECKPOINTS = 3


def _add_test_config(cfg: CfgNode) -> None:
    cfg.TEST.KEEP_PREDICTIONS = False  # (ours) COCO-panoptic PNG + JSON under OUTPUT_DIR/inference/DATASET/
    cfg.TEST.BEST_METRIC = "panoptic_seg/PQ"  # (ours) model_best.pth has the highest; "" keeps none


def _add_log_config(cfg: CfgNode) -> None:
    log = cfg.LOG = CfgNode()  # (ours)
    log.PERIOD = 20  # iterations between two rows of metrics.json
    log.TENSORBOARD = True
    log.WANDB_PROJECT = ""  # rows go to this project of Weights & Biases too; "": they do not


def load_config(
    path: str | Path, overrides: Sequence[str] = (), extend: Sequence[Callable[[CfgNode], None]] = ()
) -> CfgNode:
    """Defaults, then the YAML file with its bases, then `KEY VALUE` pairs of the command line.

    `extend` are functions that add further packages' keys first. Raises InputError (file or command line, the
    key, what would be valid) on an unreadable file, an unknown key, and a value of the wrong type or without
    meaning. Parts that another package registers must be registered by then.
    """
    cfg = get_cfg()
    add_mask_former_config(cfg)
    for add_keys in extend:
        add_keys(cfg)
    content = read_yaml_with_base(path)
    _refuse_unknown(content, cfg, str(path))
    _merge(str(path), lambda: cfg.merge_from_other_cfg(CfgNode(content)))  # CfgNode() checks types too
    if len(overrides) % 2:
        raise InputError(f"command line: overrides are KEY VALUE pairs, but {overrides[-1]!r} has no value")
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        nested: dict[str, Any] = {}
        level = nested
        for part in key.split(".")[:-1]:
            level = level.setdefault(part, {})
        level[key.split(".")[-1]] = value
        _refuse_unknown(nested, cfg, "command line")
        _merge(f"command line, {key}", partial(cfg.merge_from_list, [key, value]))
    check_values(cfg)
    return cfg


def _merge(where: str, merge: Callable[[], object]) -> None:
    """Run a yacs merge; what it refuses (a value's type, mostly) becomes one line."""
    try:
        merge()
    except (KeyError, ValueError, AssertionError, AttributeError, TypeError, RecursionError) as error:
        problem = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", " ".join(str(error).split()))
        if len(problem) > 300:  # yacs repeats a whole section
            problem = f"{problem[:150]} … {problem[-100:]}"
        raise InputError(f"{where}: {problem}; check the value's type (a float has a point: 20.0)") from error


def _refuse_unknown(content: dict[str, Any], cfg: CfgNode, where: str) -> None:
    """Raise InputError at the first key that `cfg` does not have, or has as a section, with valid ones."""
    for key in _values_for_sections(content, cfg, ()):
        section = cfg
        for part in key.split("."):
            section = section[part]
        such = next((f", such as {name}" for name in _all_keys(section, (key,))), "")
        raise InputError(f"{where}, {key}: {key} is a section and has no value; give the keys in it{such}")
    for key in _unknown_keys(content, cfg, ()):
        valid = list(_all_keys(cfg, ()))
        # the last name alone finds MODEL.MASK_FORMER.X for a key written at the wrong depth
        by_name = [name for name in valid if name.split(".")[-1] == key.split(".")[-1]]
        near = by_name[:3] or difflib.get_close_matches(key, valid, n=3)
        mend = (
            f"did you mean {' or '.join(near)}?" if near else "see mask_former/config.py for the valid keys"
        )
        raise InputError(f"{where}: unknown configuration key {key}; {mend}")


def _unknown_keys(content: dict[str, Any], cfg: CfgNode, above: tuple[str, ...]) -> Iterator[str]:
    for key, value in content.items():
        known = cfg.get(key) if key in cfg else None
        if key not in cfg:
            if not cfg.is_new_allowed():
                yield ".".join((*above, str(key)))
        elif isinstance(value, dict) and isinstance(known, CfgNode):
            yield from _unknown_keys(value, known, (*above, str(key)))


def _values_for_sections(content: dict[str, Any], cfg: CfgNode, above: tuple[str, ...]) -> Iterator[str]:
    for key, value in content.items():
        known = cfg.get(key)
        if isinstance(known, CfgNode) and isinstance(value, dict):
            yield from _values_for_sections(value, known, (*above, key))
        elif isinstance(known, CfgNode):
            yield ".".join((*above, key))


def _all_keys(cfg: CfgNode, above: tuple[str, ...]) -> Iterator[str]:
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from _all_keys(value, (*above, key))
        else:
            yield ".".join((*above, key))
