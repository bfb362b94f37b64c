"""Random first predictions and PISR modules small enough to compare in every detail.

Shapes as in pisr_maskformer/module.py.
"""

from typing import Any

import torch
from torch import Tensor, nn

from pisr_maskformer import PISR, PISRSettings

CHANNELS, QUERY_CHANNELS, CLASSES, THINGS = 64, 24, 5, (1, 3)
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "explicit_4": {"reweighting_layers": 4},
    "explicit_per_channel": {"weight_per_channel": True},
    "implicit": {"reweighting": "implicit"},
    "separate": {"reweighting": "separate"},
    "separate_no_instances": {"reweighting": "separate", "num_instances": 0},
    "no_reweighting": {"reweighting": "none"},
    "centred": {"centre_encodings": True},
    "constant": {"relation": "constant"},
    "constant_of_rank_2": {"relation": "constant", "constant_rank": 2},
    "pixel": {"feedback": "pixel"},
    "query": {"feedback": "query"},
    "binary_by_score": {"suppression": "binary", "slot_order": "score"},
    "no_suppression": {"suppression": "none", "semantic_presence": True},
    "plain_instances": {"instance_presence": False},
    "cosine_matmul": {"f1": "cosine"},
    "matmul_cosine": {"f2": "cosine"},
    "l2_l2": {"f1": "l2", "f2": "l2"},
    "matmul_l2": {"f2": "l2"},
}
# With query feedback alone, LayerNorm removes what this adds (the same to every channel of a pixel): no
# gradient.
REMOVED_BY_LAYER_NORM = "attention.g_p.bias"


def build(*, classes: int = CLASSES, things: Any = THINGS, direct: bool = False, **settings: Any) -> PISR:
    """A module whose zero-initialised outputs have normal values; the same one for the same arguments."""
    torch.manual_seed(1)
    module = PISR(
        channels=CHANNELS,
        query_channels=QUERY_CHANNELS,
        num_classes=classes,
        thing_ids=things,
        settings=PISRSettings(**{"num_instances": 4, **settings}),
        direct=direct,
    )
    for parameter in module.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return module


def prediction(
    batch: int = 2, queries: int = 6, size: tuple[int, int] = (7, 6), classes: int = CLASSES, seed: int = 0
) -> dict[str, Tensor]:
    """Features, mask logits, class logits and queries, float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "features": normal(batch, CHANNELS, *size),
        "mask_logits": 3 * normal(batch, queries, *size),
        "class_logits": 2 * normal(batch, queries, classes + 1),
        "queries": normal(batch, queries, QUERY_CHANNELS),
    }


def run(
    module: PISR, given: dict[str, Tensor], valid_pixels: Tensor | None = None, internals: bool = False
) -> Any:
    """The module on what a host would make of the logits."""
    return module(
        given["features"],
        given["mask_logits"].sigmoid(),
        given["class_logits"].softmax(-1)[..., :-1],
        given["queries"],
        valid_pixels,
        return_internals=internals,
    )


def relative_error(value: Tensor, reference: Tensor) -> float:
    """Largest difference, as a share of the reference's largest absolute value."""
    return ((value - reference).abs().max() / reference.abs().max().clamp(min=1e-30)).item()
