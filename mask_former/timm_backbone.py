"""Any timm image model with features at strides 4, 8, 16 and 32 as a detectron2 backbone.

Shapes:
    B: images in the batch; C: image channels (3); H, W: their size, a multiple of `size_divisibility`
    C2..C5: channels of res2..res5, whose strides are 4, 8, 16 and 32
"""

import difflib
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mask_former.errors import InputError
from mask_former.weights_conversion import COUNTER, abridged, read_state_dict

logger = logging.getLogger(__name__)

STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
# No model's native size, nor a multiple of a usual attention window: a model that takes it takes any.
_PROBE_SIZE = (96, 160)


class TimmBackbone(Backbone):
    """A timm model without its classifier.

    Weights come from a local file only; nothing is ever downloaded. Images must be normalised as those
    weights were trained: `timm.get_pretrained_cfg(name)` has mean and std, which times 255 are
    MODEL.PIXEL_MEAN and MODEL.PIXEL_STD.
    """

    def __init__(
        self,
        *,
        name: str,
        weights: str = "",
        out_features: Sequence[str] = tuple(STRIDES),
        freeze_bn: bool = True,
        in_channels: int = 3,
    ):
        """
        Args:
            name: timm's model name.
            weights: file with timm's state dict, classifier included or not (.pth or .safetensors);
                "" keeps timm's random initialisation.
            out_features: names among res2..res5.
            freeze_bn: fix statistics and affine parameters of every batch norm, as small batches want.
            in_channels: C.

        Raises:
            InputError: unknown model; a model without these strides or for one image size only; weights
                that do not fit it exactly; batch norms that cannot be frozen.
        """
        super().__init__()
        if not out_features or not set(out_features) <= set(STRIDES):
            raise InputError(f"MODEL.TIMM.OUT_FEATURES {list(out_features)} must be among {list(STRIDES)}")
        self._out_features = sorted(set(out_features))
        self._out_feature_strides = {feature: STRIDES[feature] for feature in self._out_features}
        self.body = _build_features(name, list(self._out_feature_strides.values()), in_channels)
        channels = self.body.feature_info.channels()
        self._out_feature_channels = dict(zip(self._out_features, channels, strict=True))
        self._channels_last = str(getattr(self.body, "output_fmt", "NCHW")).endswith("NHWC")
        self._check_takes_any_size(name, in_channels)
        if weights:
            load_timm_weights(self.body, name, weights)
        if freeze_bn:
            freeze_batch_norm(self.body)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Constructor arguments from MODEL.TIMM."""
        timm_cfg = cfg.MODEL.TIMM
        return {
            "name": timm_cfg.NAME,
            "weights": timm_cfg.WEIGHTS,
            "out_features": timm_cfg.OUT_FEATURES,
            "freeze_bn": timm_cfg.FREEZE_BN,
            "in_channels": input_shape.channels,
        }

    @property
    def size_divisibility(self) -> int:
        """H and W must be multiples of this, the largest stride."""
        return max(self._out_feature_strides.values())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised images BxCxHxW -> {"res2": BxC2xH/4xW/4, ..., "res5": BxC5xH/32xW/32}, as configured."""
        features = self.body(images)
        if self._channels_last:
            features = [feature.permute(0, 3, 1, 2).contiguous() for feature in features]
        return dict(zip(self._out_features, features, strict=True))

    def _check_takes_any_size(self, name: str, in_channels: int) -> None:
        # Some models take one image size only, some lose border pixels: better told here than by a shape
        # error in the pixel decoder.
        self.eval()
        try:
            with torch.no_grad():
                features = self(torch.zeros(1, in_channels, *_PROBE_SIZE))
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = _first_line(error)
            raise InputError(f"MODEL.TIMM.NAME {name!r} cannot take images of any size: {reason}") from error
        finally:
            self.train()
        for feature, stride in self._out_feature_strides.items():
            size = tuple(features[feature].shape[-2:])
            if size != tuple(side // stride for side in _PROBE_SIZE):
                raise InputError(
                    f"MODEL.TIMM.NAME {name!r} loses borders: {feature} of a {_PROBE_SIZE} image is {size}"
                )


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """MODEL.BACKBONE.NAME "build_timm_backbone": the model of MODEL.TIMM."""
    return TimmBackbone(**TimmBackbone.from_config(cfg, input_shape))


def _build_features(name: str, strides: list[int], in_channels: int) -> Any:
    """timm's feature extractor with one output for each of these strides, in this order."""
    model: Any = _create_features(name, in_channels)
    options = {}
    if any(getattr(module, "strict_img_size", False) for module in model.modules()):
        options["strict_img_size"] = False  # Swin transformers refuse other image sizes unless told not to
    available = list(model.feature_info.reduction())
    if not set(strides) <= set(available):
        raise InputError(
            f"MODEL.TIMM.NAME {name!r} has features at strides {available}, needed are {strides}"
        )
    # Some models leave out their first feature by default, so a place in the list is not an index.
    deepest = dict(zip(available, model.feature_info.out_indices, strict=True))
    return _create_features(name, in_channels, out_indices=[deepest[stride] for stride in strides], **options)


def _create_features(name: str, in_channels: int, **options: Any) -> nn.Module:
    import timm  # only those who choose this backbone need it

    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "timm.list_models() lists what it has"
        raise InputError(f"MODEL.TIMM.NAME {name!r} is not a model of timm {timm.__version__}; {hint}")
    try:
        return timm.create_model(name, pretrained=False, features_only=True, in_chans=in_channels, **options)
    except (RuntimeError, AttributeError, TypeError) as error:  # timm's ways to say a model cannot do this
        reason = _first_line(error)
        raise InputError(f"MODEL.TIMM.NAME {name!r} cannot be made a backbone by timm: {reason}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def load_timm_weights(features: nn.Module, name: str, path: str) -> None:
    """Load a state dict of the timm model `name` into its feature extractor, whose every entry must be found.

    Entries of the full model that the extractor lacks (the classifier, layers behind the last feature) are
    left out, and their number is logged.

    Raises:
        InputError: there is no such file; entries are missing, belong to no part of the full model, or have
            another shape.
    """
    import timm

    _require_file(name, path)
    checkpoint = read_state_dict(path)
    wanted = features.state_dict()
    sources = {key: _name_in_full_model(key, checkpoint) for key in wanted}
    found = {key: checkpoint[source] for key, source in sources.items() if source in checkpoint}
    left_out = checkpoint.keys() - set(sources.values())
    known = timm.create_model(name, pretrained=False).state_dict().keys() if left_out else set()
    faults = {
        "missing": [key for key in wanted if key not in found and not key.endswith(COUNTER)],
        "unexpected": sorted(left_out - known),
        "of another shape": [key for key in found if found[key].shape != wanted[key].shape],
    }
    if any(faults.values()):
        report = "; ".join(f"{len(keys)} {kind}: {abridged(keys)}" for kind, keys in faults.items() if keys)
        raise InputError(f"weights {path} do not fit timm's {name}: {report}")
    features.load_state_dict(found, strict=False)  # all but the counters was checked above
    logger.info("%s: %d entries from %s; %d of later layers left out", name, len(found), path, len(left_out))


def _require_file(name: str, path: str) -> None:
    """InputError that says how to come by the weights of the model `name`, unless they are at `path`."""
    if Path(path).is_file():
        return
    lite = re.match(r"tf_efficientnet_(lite[0-2])\b", name)
    make = f"put timm's state dict of {name} there"
    if lite:
        make = f"make it by `python tools/convert_efficientnet_lite.py --variant {lite[1]} --output {path}`"
    raise InputError(f"no weights file at {path}: {make}, or set MODEL.TIMM.WEIGHTS '' for random weights")


def _name_in_full_model(key: str, checkpoint: Mapping[str, Tensor]) -> str:
    """timm's extractors wrap some models ("model.") and flatten lists ("stages_0." for "stages.0.")."""
    if key in checkpoint:
        return key
    return re.sub(r"^(\w+?)_(\d+)\.", r"\1.\2.", key.removeprefix("model."))


class FrozenBatchNormAct2d(FrozenBatchNorm2d):
    """detectron2's frozen batch norm, then the dropout and activation that timm's BatchNormAct2d holds."""

    def __init__(self, num_features: int, eps: float, drop: nn.Module, act: nn.Module):
        super().__init__(num_features, eps)
        self.drop = drop
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


def freeze_batch_norm(module: nn.Module) -> None:
    """Replace every batch norm inside `module`, in place, by a frozen one with the same state dict names.

    Not by detectron2's `convert_frozen_batchnorm`, which takes timm's BatchNormAct2d for a plain batch norm
    and drops its activation; nor by timm's, whose frozen norm turns half precision to float32.

    Raises:
        InputError: a batch norm of another kind is left (1d, or without running statistics).
    """
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            setattr(parent, name, _frozen(child))
    left = {type(child).__name__ for child in module.modules() if isinstance(child, _BatchNorm)}
    if left:
        raise InputError(f"cannot freeze {', '.join(sorted(left))} layers: set MODEL.TIMM.FREEZE_BN False")


def _frozen(module: nn.Module) -> nn.Module:
    """The frozen form of a batch norm; any other module as it is."""
    from timm.layers import BatchNormAct2d

    if type(module) not in (nn.BatchNorm2d, BatchNormAct2d) or module.running_mean is None:
        return module
    frozen = FrozenBatchNorm2d(module.num_features, module.eps)
    if isinstance(module, BatchNormAct2d):
        frozen = FrozenBatchNormAct2d(module.num_features, module.eps, module.drop, module.act)
    entries = {name: tensor for name, tensor in module.state_dict().items() if name != COUNTER}
    frozen.load_state_dict(entries, strict=False)  # without affine parameters: weight 1 and bias 0 stay
    return frozen
