"""Optimiser, clipping and learning-rate schedule: which parameter gets which rate and weight decay."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.projects.deeplab import build_lr_scheduler
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import Tensor, nn

from mask_former.errors import InputError

logger = logging.getLogger(__name__)

NORMS: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "ADAMW": torch.optim.AdamW,
    "SGD": torch.optim.SGD,
}
FUSED_DEVICES = ("cpu", "cuda")
FULL_MODEL = "full_model"
MULTIPLIER = "_MULTIPLIER"  # SOLVER.PART_MULTIPLIER: rate of the modules called `part`, relative to BASE_LR
REST = "head"  # the part that everything else belongs to

__all__ = [
    "Clipping",
    "build_clipping",
    "build_lr_scheduler",
    "build_optimizer",
    "learning_rates",
    "parameter_groups",
    "part_multipliers",
]


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    multipliers: Mapping[str, float] | None = None,
    weight_decay_norm: float = 0.0,
    weight_decay_embed: float = 0.0,
) -> list[dict[str, Any]]:
    """Parameters grouped by part, learning rate and weight decay; each appears once, frozen ones not at all.

    Parameters inside a module called as a key of `multipliers` learn at `lr` times its value; norms and
    embeddings have own decays. A group's `part` is that key, or "head" for all else.
    """
    multipliers = multipliers or {}
    groups: dict[tuple[str, float, float], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        path = module_name.split(".")
        part = next((part for part in multipliers if part in path), REST)
        rate = lr * multipliers.get(part, 1.0)
        for parameter in module.parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            decay = weight_decay
            if isinstance(module, NORMS):
                decay = weight_decay_norm
            elif isinstance(module, nn.Embedding):
                decay = weight_decay_embed
            groups.setdefault((part, rate, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": decay, "part": part}
        for (part, rate, decay), parameters in groups.items()
    ]


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Present rates by name in the log: `lr` of the head, `lr_backbone` and so on of other parts."""
    return {
        "lr" if group["part"] == REST else f"lr_{group['part']}": float(group["lr"])
        for group in optimizer.param_groups
    }


def part_multipliers(cfg: CfgNode) -> dict[str, float]:
    """By part, of every SOLVER.PART_MULTIPLIER; but for the backbone, what is at 1 is no part of its own."""
    values = {
        name.removesuffix(MULTIPLIER).lower(): value
        for name, value in cfg.SOLVER.items()
        if name.endswith(MULTIPLIER)
    }
    return {part: value for part, value in values.items() if value != 1 or part == "backbone"}


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW or SGD as cfg.SOLVER says; detectron2's own ways of clipping, by parameter, are in its step.

    Fused: all parameters of a device in one kernel, which with float16 also sees to overflows by itself, so
    that the host need not wait for them.
    """
    solver = cfg.SOLVER
    if solver.OPTIMIZER not in OPTIMIZERS:
        raise InputError(f"SOLVER.OPTIMIZER is {solver.OPTIMIZER!r}; use one of: {', '.join(OPTIMIZERS)}")
    multipliers = part_multipliers(cfg)
    groups = parameter_groups(
        model,
        lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        multipliers=multipliers,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        weight_decay_embed=solver.WEIGHT_DECAY_EMBED,
    )
    for part in multipliers.keys() - {group["part"] for group in groups}:
        logger.warning(
            "SOLVER.%s%s has no effect: no parameter of a %s learns", part.upper(), MULTIPLIER, part
        )
    options = {
        "ADAMW": {"eps": solver.ADAM_EPS},
        "SGD": {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV},
    }
    fused = all(parameter.device.type in FUSED_DEVICES for group in groups for parameter in group["params"])
    optimizer = OPTIMIZERS[solver.OPTIMIZER](
        groups, lr=solver.BASE_LR, fused=fused, **options[solver.OPTIMIZER]
    )
    if solver.CLIP_GRADIENTS.CLIP_TYPE == FULL_MODEL:
        return optimizer
    return maybe_add_gradient_clipping(cfg, optimizer)


class Clipping:
    """Brings all gradients together down to a norm of `max_norm`; infinity leaves them as they are."""

    def __init__(self, max_norm: float = math.inf, norm_type: float = 2.0) -> None:
        self.max_norm = max_norm
        self.norm_type = norm_type

    def norm(self, parameters: Sequence[Tensor]) -> Tensor:
        """The norm of the parameters' gradients as one vector, a scalar tensor."""
        norms = torch._foreach_norm(_gradients(parameters), self.norm_type)
        return torch.linalg.vector_norm(torch.stack(norms), self.norm_type)

    def __call__(self, parameters: Sequence[Tensor], norm: Tensor) -> None:
        """Scale the gradients, whose norm is `norm`; one that is not finite would spoil every gradient."""
        if self.max_norm < math.inf:
            torch._foreach_mul_(_gradients(parameters), (self.max_norm / (norm + 1e-6)).clamp(max=1.0))


def build_clipping(cfg: CfgNode) -> Clipping:
    """The clipping of CLIP_TYPE "full_model"; it changes nothing with another type or a CLIP_VALUE of 0."""
    clip = cfg.SOLVER.CLIP_GRADIENTS
    clips_all = clip.ENABLED and clip.CLIP_TYPE == FULL_MODEL and clip.CLIP_VALUE > 0
    return Clipping(clip.CLIP_VALUE if clips_all else math.inf, clip.NORM_TYPE)


def _gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
