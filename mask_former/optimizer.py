"""Optimiser and learning-rate schedule: which parameter gets which rate and weight decay."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.projects.deeplab import build_lr_scheduler
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import Tensor, nn

from mask_former.errors import InputError

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
FULL_MODEL = "full_model"

__all__ = ["build_lr_scheduler", "build_optimizer", "clip_full_model", "parameter_groups"]


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    backbone_multiplier: float = 1.0,
    weight_decay_norm: float = 0.0,
    weight_decay_embed: float = 0.0,
) -> list[dict[str, Any]]:
    """Parameters grouped by learning rate and weight decay; each appears once, frozen ones not at all.

    Parameters under `backbone` learn at `lr · backbone_multiplier`; norms and embeddings have own decays.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            in_backbone = "backbone" in f"{module_name}.{name}".split(".")
            rate = lr * backbone_multiplier if in_backbone else lr
            decay = weight_decay
            if isinstance(module, NORMS):
                decay = weight_decay_norm
            elif isinstance(module, nn.Embedding):
                decay = weight_decay_embed
            groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW or SGD as cfg.SOLVER says, clipping included (CLIP_TYPE "full_model" or detectron2's)."""
    solver = cfg.SOLVER
    if solver.OPTIMIZER not in OPTIMIZERS:
        raise InputError(f"SOLVER.OPTIMIZER is {solver.OPTIMIZER!r}; use one of: {', '.join(OPTIMIZERS)}")
    groups = parameter_groups(
        model,
        lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        backbone_multiplier=solver.BACKBONE_MULTIPLIER,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        weight_decay_embed=solver.WEIGHT_DECAY_EMBED,
    )
    options = {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV} if solver.OPTIMIZER == "SGD" else {}
    optimizer = OPTIMIZERS[solver.OPTIMIZER](groups, lr=solver.BASE_LR, **options)
    clip = solver.CLIP_GRADIENTS
    if clip.ENABLED and clip.CLIP_TYPE == FULL_MODEL:
        if clip.CLIP_VALUE > 0:
            clip_full_model(optimizer, max_norm=clip.CLIP_VALUE, norm_type=clip.NORM_TYPE)
        return optimizer
    return maybe_add_gradient_clipping(cfg, optimizer)


def clip_full_model(optimizer: torch.optim.Optimizer, *, max_norm: float, norm_type: float = 2.0) -> None:
    """Before every step, scale all gradients so that their common norm is at most `max_norm`."""

    def clip(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        torch.nn.utils.clip_grad_norm_(_all_parameters(optimizer), max_norm, norm_type)

    optimizer.register_step_pre_hook(clip)


def _all_parameters(optimizer: torch.optim.Optimizer) -> Iterable[Tensor]:
    return list(itertools.chain.from_iterable(group["params"] for group in optimizer.param_groups))
