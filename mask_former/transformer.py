"""Transformer encoder and decoder layers with position embeddings added to queries and keys (DETR).

Shapes: B batch · N memory positions · Q queries · D model width · L decoder layers. Batch-first.
Parameter names are those of torch.nn's own transformer layers, which published checkpoints use.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mask_former.errors import InputError


class FeedForward:
    """The two-layer network, mixed into transformer layers so that its parameters keep flat names."""

    linear1: nn.Linear
    linear2: nn.Linear
    dropout: nn.Dropout

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(F.relu(self.linear1(x))))


def attention(width: int, num_heads: int, dropout: float) -> nn.MultiheadAttention:
    """Batch-first multi-head attention; InputError when the heads do not share the width evenly."""
    if width % num_heads:
        raise InputError(
            f"a transformer of width {width} cannot have {num_heads} heads; MODEL.MASK_FORMER.HIDDEN_DIM and "
            "MODEL.SEM_SEG_HEAD.CONVS_DIM must be divisible by MODEL.MASK_FORMER.NHEADS"
        )
    return nn.MultiheadAttention(width, num_heads, dropout=dropout, batch_first=True)


class EncoderLayer(FeedForward, nn.Module):
    """Self-attention and feed-forward network, each with a residual; norms after them, or before
    (`pre_norm`).
    """

    def __init__(
        self, width: int, num_heads: int, feedforward: int, dropout: float, pre_norm: bool = False
    ) -> None:
        super().__init__()
        self.self_attn = attention(width, num_heads, dropout)
        self.linear1 = nn.Linear(width, feedforward)
        self.linear2 = nn.Linear(feedforward, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """`x` B×N×D, `position` broadcastable to it; returns B×N×D."""
        if self.pre_norm:
            x = x + self.dropout(self._attend(self.norm1(x), position))
            return x + self.dropout(self.feed_forward(self.norm2(x)))
        x = self.norm1(x + self.dropout(self._attend(x, position)))
        return self.norm2(x + self.dropout(self.feed_forward(x)))

    def _attend(self, x: Tensor, position: Tensor) -> Tensor:
        located = x + position
        return self.self_attn(located, located, x, need_weights=False)[0]


class DecoderLayer(FeedForward, nn.Module):
    """Self-attention among queries, attention to the memory, feed-forward network; each with a residual."""

    def __init__(
        self, width: int, num_heads: int, feedforward: int, dropout: float, pre_norm: bool = False
    ) -> None:
        super().__init__()
        self.self_attn = attention(width, num_heads, dropout)
        self.multihead_attn = attention(width, num_heads, dropout)
        self.linear1 = nn.Linear(width, feedforward)
        self.linear2 = nn.Linear(feedforward, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm

    def forward(
        self, target: Tensor, query_position: Tensor, located_memory: Tensor, memory: Tensor
    ) -> Tensor:
        """`target`, `query_position` B×Q×D; `located_memory` = memory + positions, `memory` B×N×D; returns
        B×Q×D.
        """

        def among_queries(x: Tensor) -> Tensor:
            located = x + query_position
            return self.dropout(self.self_attn(located, located, x, need_weights=False)[0])

        def to_memory(x: Tensor) -> Tensor:
            return self.dropout(
                self.multihead_attn(x + query_position, located_memory, memory, need_weights=False)[0]
            )

        def network(x: Tensor) -> Tensor:
            return self.dropout(self.feed_forward(x))

        steps = ((among_queries, self.norm1), (to_memory, self.norm2), (network, self.norm3))
        for step, norm in steps:
            target = target + step(norm(target)) if self.pre_norm else norm(target + step(target))
        return target


class Encoder(nn.Module):
    """A stack of encoder layers; with `pre_norm` a last LayerNorm follows."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        feedforward: int,
        dropout: float,
        num_layers: int,
        pre_norm: bool = False,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(width, num_heads, feedforward, dropout, pre_norm) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(width) if pre_norm else None

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, position)
        return x if self.norm is None else self.norm(x)


class Decoder(nn.Module):
    """A stack of decoder layers that share one LayerNorm on their outputs."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        feedforward: int,
        dropout: float,
        num_layers: int,
        pre_norm: bool = False,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(width, num_heads, feedforward, dropout, pre_norm) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, target: Tensor, query_position: Tensor, memory: Tensor, position: Tensor) -> Tensor:
        """Normalised output of every layer, L×B×Q×D."""
        located_memory = memory + position
        outputs = []
        for layer in self.layers:
            target = layer(target, query_position, located_memory, memory)
            outputs.append(self.norm(target))
        return torch.stack(outputs)


class EncoderTransformer(nn.Module):
    """Encoder over a feature map (the pixel decoder's transformer)."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        feedforward: int,
        dropout: float,
        num_layers: int,
        pre_norm: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(width, num_heads, feedforward, dropout, num_layers, pre_norm)
        initialise_matrices(self)

    def forward(self, features: Tensor, position: Tensor) -> Tensor:
        """`features` B×D×H×W, `position` 1×D×H×W; returns B×D×H×W."""
        encoded = self.encoder(to_sequence(features), to_sequence(position))
        return encoded.transpose(1, 2).reshape(features.shape)


class QueryTransformer(nn.Module):
    """Optional encoder, then the decoder in which queries gather what they need from a feature map."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        feedforward: int,
        dropout: float,
        encoder_layers: int,
        decoder_layers: int,
        pre_norm: bool = False,
    ) -> None:
        super().__init__()
        arguments = (width, num_heads, feedforward, dropout)
        self.encoder = Encoder(*arguments, encoder_layers, pre_norm) if encoder_layers else None
        self.decoder = Decoder(*arguments, decoder_layers, pre_norm)
        initialise_matrices(self)

    def forward(self, features: Tensor, position: Tensor, query_embedding: Tensor) -> Tensor:
        """`features` B×D×H×W, `position` 1×D×H×W, `query_embedding` Q×D; returns L×B×Q×D."""
        memory, position = to_sequence(features), to_sequence(position)
        if self.encoder is not None:
            memory = self.encoder(memory, position)
        query_position = query_embedding.expand(len(features), *query_embedding.shape)
        return self.decoder(torch.zeros_like(query_position), query_position, memory, position)


def to_sequence(feature_map: Tensor) -> Tensor:
    """B×D×H×W as B×HW×D."""
    return feature_map.flatten(2).transpose(1, 2)


def initialise_matrices(module: nn.Module) -> None:
    """Xavier-uniform values for every matrix; vectors keep PyTorch's defaults."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
