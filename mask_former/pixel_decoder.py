"""Pixel decoders: backbone features to per-pixel embeddings.

Shapes: B batch · C_i, H_i, W_i channels and size of backbone level i · D `conv_dim` · M `mask_dim` ·
H W the size of the finest level (stride 4). Levels are numbered from 1, finest first; parameter names
`adapter_i`, `layer_i` count that way in published checkpoints.
"""

from typing import Any, NamedTuple

from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn import functional as F

from mask_former.errors import InputError
from mask_former.position import sine_position
from mask_former.transformer import EncoderTransformer


class PixelFeatures(NamedTuple):
    """What a pixel decoder returns."""

    mask_features: Tensor  # B×M×H×W, the per-pixel embeddings
    encoded: Tensor | None  # B×D×H_n×W_n, the coarsest level after the transformer encoder, if there is one


def conv_norm(in_channels: int, out_channels: int, kernel: int, norm: str, relu: bool) -> Conv2d:
    """Convolution of stride 1 that keeps the size, with a norm ("" for none, then it has a bias)."""
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size=kernel,
        padding=kernel // 2,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=F.relu if relu else None,
    )
    weight_init.c2_xavier_fill(conv)
    return conv


@SEM_SEG_HEADS_REGISTRY.register()
class BasePixelDecoder(nn.Module):
    """Feature pyramid: the coarsest level through a 3×3 convolution, finer ones added on the way up.

    On each finer level a 1×1 convolution projects the backbone's features, the level above is upsampled by
    nearest neighbour and added, and a 3×3 convolution smooths the sum; a last one gives the embeddings.
    """

    gives_encoded = False  # whether PixelFeatures.encoded is there for the query decoder

    @configurable
    def __init__(
        self, input_shape: dict[str, ShapeSpec], *, conv_dim: int, mask_dim: int, norm: str = "GN"
    ) -> None:
        """`input_shape`: name to channels and stride of every level used."""
        super().__init__()
        levels = sorted(input_shape.items(), key=lambda item: item[1].stride)
        self.in_features = [name for name, _ in levels]
        channels = [shape.channels for _, shape in levels]
        for number, in_channels in enumerate(channels[:-1], start=1):
            self.add_module(f"adapter_{number}", conv_norm(in_channels, conv_dim, 1, norm, relu=False))
            self.add_module(f"layer_{number}", conv_norm(conv_dim, conv_dim, 3, norm, relu=True))
        top_channels = self.prepare_top(channels[-1], conv_dim)
        self.add_module(f"layer_{len(levels)}", conv_norm(top_channels, conv_dim, 3, norm, relu=True))
        self.mask_features = conv_norm(conv_dim, mask_dim, 3, norm="", relu=False)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        head = cfg.MODEL.SEM_SEG_HEAD
        unknown = [name for name in head.IN_FEATURES if name not in input_shape]
        if unknown or not head.IN_FEATURES:
            raise InputError(
                f"MODEL.SEM_SEG_HEAD.IN_FEATURES is {list(head.IN_FEATURES)}; "
                f"choose from what the backbone gives: {', '.join(input_shape)}"
            )
        return {
            "input_shape": {name: input_shape[name] for name in head.IN_FEATURES},
            "conv_dim": head.CONVS_DIM,
            "mask_dim": head.MASK_DIM,
            "norm": head.NORM,
        }

    def prepare_top(self, in_channels: int, conv_dim: int) -> int:
        """Build what acts on the coarsest level before its 3×3 convolution; returns the channels it gives."""
        return in_channels

    def encode_top(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """Coarsest level as the pyramid takes it, and as the query decoder may take it."""
        return features, None

    def forward(self, features: dict[str, Tensor]) -> PixelFeatures:
        """`features`: name to B×C_i×H_i×W_i for every level used."""
        top, encoded = self.encode_top(features[self.in_features[-1]])
        pyramid = self.get_submodule(f"layer_{len(self.in_features)}")(top)
        for number in range(len(self.in_features) - 1, 0, -1):
            lateral = self.get_submodule(f"adapter_{number}")(features[self.in_features[number - 1]])
            above = F.interpolate(pyramid, size=lateral.shape[-2:], mode="nearest")
            pyramid = self.get_submodule(f"layer_{number}")(lateral + above)
        return PixelFeatures(self.mask_features(pyramid), encoded)


@SEM_SEG_HEADS_REGISTRY.register()
class TransformerEncoderPixelDecoder(BasePixelDecoder):
    """Feature pyramid whose coarsest level first passes through a transformer encoder."""

    gives_encoded = True

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        conv_dim: int,
        mask_dim: int,
        norm: str = "GN",
        num_heads: int = 8,
        feedforward: int = 2048,
        dropout: float = 0.1,
        encoder_layers: int = 6,
        pre_norm: bool = False,
    ) -> None:
        super().__init__(input_shape, conv_dim=conv_dim, mask_dim=mask_dim, norm=norm)
        self.transformer = EncoderTransformer(
            conv_dim, num_heads, feedforward, dropout, encoder_layers, pre_norm
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        mask_former = cfg.MODEL.MASK_FORMER
        return super().from_config(cfg, input_shape) | {
            "num_heads": mask_former.NHEADS,
            "feedforward": mask_former.DIM_FEEDFORWARD,
            "dropout": mask_former.DROPOUT,
            "encoder_layers": cfg.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS,
            "pre_norm": mask_former.PRE_NORM,
        }

    def prepare_top(self, in_channels: int, conv_dim: int) -> int:
        self.input_proj = conv_norm(in_channels, conv_dim, 1, norm="", relu=False)
        return conv_dim

    def encode_top(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        projected = self.input_proj(features)
        position = sine_position(projected.shape[-2:], projected.shape[1], device=projected.device)
        encoded = self.transformer(projected, position)
        return encoded, encoded
