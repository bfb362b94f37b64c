"""Query decoder: a feature map and per-pixel embeddings to class logits and mask logits.

Shapes: B batch · Q queries · C classes without "no object" · L decoder layers · D query width ·
M mask-embedding channels · H W size of the per-pixel embeddings (stride 4) · h w size of the memory.
"""

from typing import Any, TypedDict

import torch
from detectron2.config import CfgNode, configurable
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn import functional as F

from mask_former.errors import InputError
from mask_former.position import sine_position
from mask_former.registries import PREDICTOR_REGISTRY
from mask_former.transformer import QueryTransformer


class Prediction(TypedDict):
    """Predictions of one decoder layer."""

    pred_logits: Tensor  # B×Q×(C+1) class logits, "no object" last
    pred_masks: Tensor  # B×Q×H×W mask logits


class Predictions(Prediction):
    """Predictions of the last decoder layer, and of the earlier ones where they are supervised."""

    # in the order of the layers; empty in evaluation or without deep supervision
    aux_outputs: list[Prediction]


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int) -> None:
        super().__init__()
        dims = [in_dim, *[hidden_dim] * (num_layers - 1), out_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(dims[:-1], dims[1:], strict=True))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


@PREDICTOR_REGISTRY.register()
class TransformerPredictor(nn.Module):
    """MaskFormer's transformer module (arXiv 2107.06278, Section 3.2).

    `decode` and `predict` are separate steps so that a predictor built on this one can act between them.
    """

    @configurable
    def __init__(
        self,
        in_channels: int,
        *,
        num_classes: int,
        hidden_dim: int = 256,
        num_queries: int = 100,
        num_heads: int = 8,
        dropout: float = 0.1,
        feedforward: int = 2048,
        encoder_layers: int = 0,
        decoder_layers: int = 6,
        pre_norm: bool = False,
        deep_supervision: bool = True,
        mask_dim: int = 256,
        enforce_input_proj: bool = False,
    ) -> None:
        """`in_channels`: of the memory; projected to `hidden_dim` if they differ, or always if enforced."""
        super().__init__()
        if decoder_layers < 1:
            raise InputError(f"MODEL.MASK_FORMER.DEC_LAYERS is {decoder_layers}; it must be at least 1")
        self.num_classes = num_classes
        self.num_queries = num_queries
        self.hidden_dim = hidden_dim
        self.mask_dim = mask_dim
        self.deep_supervision = deep_supervision
        self.input_proj: nn.Module = nn.Identity()
        if in_channels != hidden_dim or enforce_input_proj:
            self.input_proj = nn.Conv2d(in_channels, hidden_dim, kernel_size=1)
            weight_init.c2_xavier_fill(self.input_proj)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.transformer = QueryTransformer(
            hidden_dim, num_heads, feedforward, dropout, encoder_layers, decoder_layers, pre_norm
        )
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.mask_embed = MLP(hidden_dim, hidden_dim, mask_dim, 3)

    @classmethod
    def from_config(cls, cfg: CfgNode, in_channels: int) -> dict[str, Any]:
        mask_former = cfg.MODEL.MASK_FORMER
        return {
            "in_channels": in_channels,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "hidden_dim": mask_former.HIDDEN_DIM,
            "num_queries": mask_former.NUM_OBJECT_QUERIES,
            "num_heads": mask_former.NHEADS,
            "dropout": mask_former.DROPOUT,
            "feedforward": mask_former.DIM_FEEDFORWARD,
            "encoder_layers": mask_former.ENC_LAYERS,
            "decoder_layers": mask_former.DEC_LAYERS,
            "pre_norm": mask_former.PRE_NORM,
            "deep_supervision": mask_former.DEEP_SUPERVISION,
            "mask_dim": cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
            "enforce_input_proj": mask_former.ENFORCE_INPUT_PROJ,
        }

    def decode(self, memory: Tensor) -> Tensor:
        """Queries after every decoder layer: `memory` B×C×h×w to L×B×Q×D."""
        position = sine_position(memory.shape[-2:], self.hidden_dim, device=memory.device)
        return self.transformer(self.input_proj(memory), position, self.query_embed.weight)

    def predict(self, queries: Tensor, mask_features: Tensor) -> Prediction:
        """One layer's queries B×Q×D and embeddings B×M×H×W to logits of classes and masks."""
        masks = torch.einsum("bqc,bchw->bqhw", self.mask_embed(queries), mask_features)
        return {"pred_logits": self.class_embed(queries), "pred_masks": masks}

    def predict_layers(self, decoded: Tensor, mask_features: Tensor) -> Predictions:
        """Predictions of the last of L×B×Q×D queries and, in supervised training, of all before it."""
        earlier = decoded[:-1] if self.training and self.deep_supervision else ()
        return {
            **self.predict(decoded[-1], mask_features),
            "aux_outputs": [self.predict(queries, mask_features) for queries in earlier],
        }

    def forward(
        self, memory: Tensor, mask_features: Tensor, image_sizes: list[tuple[int, int]] | None = None
    ) -> Predictions:
        """`memory` B×C×h×w, `mask_features` B×M×H×W, `image_sizes` (height, width) before padding, in pixels.

        MaskFormer does not use the sizes: padding takes part in everything, as in the official model.
        """
        return self.predict_layers(self.decode(memory), mask_features)
