"""Reweighting of the panoptic encodings to reflect importance (Section 3.3, Table B.1).

Shapes: B batch · C semantic and N instance encodings · E = C + N · D channels
    encodings E_pan B×E×D, the C semantic ones first -> (E~ B×E×D, weights w B×E×1 or B×E×D or None)
"""

from itertools import pairwise

import torch
from torch import Tensor, nn


def mlp(channels: int, out_channels: int, hidden_layers: int) -> nn.Sequential:
    """`hidden_layers` linear layers of width `channels` (choice: D) with ReLU, then one to `out_channels`."""
    widths = [channels] * (hidden_layers + 1)
    hidden = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(channels, out_channels))


def less_mean(encodings: Tensor, valid: Tensor) -> Tensor:
    """E~ less the mean of the image's valid ones; those not `valid`, B×E bool, are zero and stay it.

    Not in the paper.
    """
    mean = encodings.sum(1, keepdim=True) / valid.sum(1)[:, None, None]
    return encodings - mean * valid[..., None]


class ExplicitReweighting(nn.Module):
    """w = sigmoid(MLP(E_pan)), E~ = w * E_pan: the paper's default, Figure B.1 (a)."""

    def __init__(self, *, channels: int, hidden_layers: int, weight_per_channel: bool, **unused: int) -> None:
        super().__init__()
        self.network = mlp(channels, channels if weight_per_channel else 1, hidden_layers)

    def forward(self, encodings: Tensor) -> tuple[Tensor, Tensor | None]:
        weights = self.network(encodings).sigmoid()
        return weights * encodings, weights


class ImplicitReweighting(nn.Module):
    """E~ = MLP(E_pan), Figure B.1 (b)."""

    def __init__(self, *, channels: int, hidden_layers: int, **unused: int) -> None:
        super().__init__()
        self.network = mlp(channels, channels, hidden_layers)

    def forward(self, encodings: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.network(encodings), None


class SeparateReweighting(nn.Module):
    """E_sem and E_ins through linear layers of their own, concatenated along E, then the implicit network."""

    def __init__(
        self, *, channels: int, hidden_layers: int, num_classes: int, num_instances: int, **unused: int
    ) -> None:
        super().__init__()
        self.sizes = [num_classes, num_instances]
        self.semantic = nn.Linear(channels, channels)
        # Without instance slots the layer would never get a gradient, which distributed training refuses.
        self.instance = nn.Linear(channels, channels) if num_instances else nn.Identity()
        self.network = mlp(channels, channels, hidden_layers)

    def forward(self, encodings: Tensor) -> tuple[Tensor, Tensor | None]:
        semantic, instance = encodings.split(self.sizes, dim=1)
        return self.network(torch.cat([self.semantic(semantic), self.instance(instance)], dim=1)), None


class NoReweighting(nn.Module):
    """E~ = E_pan: the control."""

    def __init__(self, **unused: int) -> None:
        super().__init__()

    def forward(self, encodings: Tensor) -> tuple[Tensor, Tensor | None]:
        return encodings, None


# Name -> class. Every one is given the same keywords (channels D, hidden_layers, weight_per_channel,
# num_classes C, num_instances N), names those it needs and builds only the parameters it uses.
REWEIGHTING: dict[str, type[nn.Module]] = {
    "explicit": ExplicitReweighting,
    "implicit": ImplicitReweighting,
    "separate": SeparateReweighting,
    "none": NoReweighting,
}
