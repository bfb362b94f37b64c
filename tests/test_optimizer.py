"""Which parameter learns at which rate and decay, clipping over the whole model, and the schedule's form."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from mask_former.errors import InputError
from mask_former.optimizer import (
    build_clipping,
    build_lr_scheduler,
    build_optimizer,
    learning_rates,
    parameter_groups,
)
from tests.tiny import ENCODER, resnet, tiny_config, tiny_model

SOLVER = {
    "SOLVER.BASE_LR": 0.01,
    "SOLVER.WEIGHT_DECAY": 0.05,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    "SOLVER.WEIGHT_DECAY_EMBED": 0.0,
    "SOLVER.BACKBONE_MULTIPLIER": 0.1,
}
CLIPPING = {
    "SOLVER.OPTIMIZER": "SGD",
    "SOLVER.BASE_LR": 1.0,
    "SOLVER.MOMENTUM": 0.0,
    "SOLVER.WEIGHT_DECAY": 0.0,
    "SOLVER.BACKBONE_MULTIPLIER": 1.0,
    "SOLVER.CLIP_GRADIENTS.ENABLED": True,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "full_model",
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 0.01,
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": 2.0,
}


class Small(nn.Module):
    """Every kind of parameter the rules tell apart."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"conv": nn.Conv2d(3, 4, 1), "norm": nn.BatchNorm2d(4)})
        self.head = nn.ModuleDict(
            {"linear": nn.Linear(4, 2), "layer_norm": nn.LayerNorm(4), "group": nn.GroupNorm(2, 4)}
        )
        self.queries = nn.Embedding(5, 4)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.again = self.head["linear"]  # shared: the same parameters under a second name


def settings(model: nn.Module, groups: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """(learning rate, weight decay) of every parameter by name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


def count(optimizer: torch.optim.Optimizer) -> int:
    return sum(len(group["params"]) for group in optimizer.param_groups)


def test_rates_and_decays_by_kind() -> None:
    model = Small()
    groups = parameter_groups(
        model,
        lr=1.0,
        weight_decay=0.5,
        multipliers={"backbone": 0.1},
        weight_decay_norm=0.25,
        weight_decay_embed=0.125,
    )
    assert settings(model, groups) == {
        "backbone.conv.weight": (0.1, 0.5),
        "backbone.conv.bias": (0.1, 0.5),
        "backbone.norm.weight": (0.1, 0.25),
        "backbone.norm.bias": (0.1, 0.25),
        "head.linear.weight": (1.0, 0.5),
        "head.linear.bias": (1.0, 0.5),
        "head.layer_norm.weight": (1.0, 0.25),
        "head.layer_norm.bias": (1.0, 0.25),
        "head.group.weight": (1.0, 0.25),
        "head.group.bias": (1.0, 0.25),
        "queries.weight": (1.0, 0.125),
    }
    assert sum(len(group["params"]) for group in groups) == 11  # shared ones once, frozen ones not at all


@pytest.mark.parametrize("optimizer_name", ["ADAMW", "SGD"])
def test_the_models_own_parameters(optimizer_name: str) -> None:
    model = tiny_model(ENCODER | resnet(18))
    optimizer = build_optimizer(tiny_config({**SOLVER, "SOLVER.OPTIMIZER": optimizer_name}), model)
    assert type(optimizer).__name__.upper() == optimizer_name
    found = settings(model, optimizer.param_groups)
    assert found.keys() == dict(model.named_parameters()).keys()
    assert count(optimizer) == len(found)
    for name, (rate, decay) in found.items():
        assert rate == pytest.approx(0.001 if name.startswith("backbone.") else 0.01), name
        norm_or_embedding = "norm" in name or "query_embed" in name
        assert decay == (0.0 if norm_or_embedding else 0.05), name


def test_frozen_parameters_are_left_out() -> None:
    model = tiny_model()
    for parameter in model.backbone.parameters():
        parameter.requires_grad_(False)
    optimizer = build_optimizer(tiny_config(SOLVER), model)
    assert not any(name.startswith("backbone.") for name in settings(model, optimizer.param_groups))


def step_of(changes: dict[str, Any], gradients: tuple[float, float]) -> list[float]:
    """How far one SGD step of rate 1 moves two parameters, one in the backbone."""
    model = nn.ModuleDict({"backbone": nn.Linear(1, 1, bias=False), "head": nn.Linear(1, 1, bias=False)})
    optimizer = build_optimizer(tiny_config(changes), model)
    before = [parameter.item() for parameter in model.parameters()]
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = torch.full_like(parameter, gradient)
    clip, parameters = build_clipping(tiny_config(changes)), list(model.parameters())
    norm = clip.norm(parameters)
    clip(parameters, norm)
    if changes["SOLVER.CLIP_GRADIENTS.NORM_TYPE"] == 2.0:
        assert norm.item() == pytest.approx(math.hypot(*gradients))  # whatever is clipped
    optimizer.step()
    return [old - new.item() for old, new in zip(before, model.parameters(), strict=True)]


def test_clipping_is_over_the_whole_model() -> None:
    """Gradients 3 and 4 have norm 5: both are scaled by 0.01 / 5, in whatever group they are."""
    assert step_of(CLIPPING, (3.0, 4.0)) == pytest.approx([0.006, 0.008], rel=1e-4)
    groups = {**CLIPPING, "SOLVER.BACKBONE_MULTIPLIER": 0.5}  # clipped together, then each at its own rate
    assert step_of(groups, (3.0, 4.0)) == pytest.approx([0.003, 0.008], rel=1e-4)


def test_small_gradients_are_not_scaled_up() -> None:
    assert step_of(CLIPPING, (0.003, 0.004)) == pytest.approx([0.003, 0.004], rel=1e-4)


def test_clipping_by_another_norm() -> None:
    largest = {**CLIPPING, "SOLVER.CLIP_GRADIENTS.NORM_TYPE": float("inf")}
    assert step_of(largest, (3.0, 4.0)) == pytest.approx([0.0075, 0.01], rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"SOLVER.CLIP_GRADIENTS.ENABLED": False}, [3.0, 4.0]),
        ({"SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "value", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 3.5}, [3.0, 3.5]),
        ({"SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "norm", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 3.5}, [3.0, 3.5]),
    ],
    ids=["off", "value", "norm of each parameter"],
)
def test_detectron2s_ways_of_clipping(changes: dict[str, Any], expected: list[float]) -> None:
    assert step_of({**CLIPPING, **changes}, (3.0, 4.0)) == pytest.approx(expected, rel=1e-4)


def test_momentum_of_sgd_comes_from_the_config() -> None:
    changes = {"SOLVER.OPTIMIZER": "SGD", "SOLVER.MOMENTUM": 0.7, "SOLVER.NESTEROV": True}
    group = build_optimizer(tiny_config(changes), tiny_model()).param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0.7, True)


def test_eps_of_adam_comes_from_the_config() -> None:
    """With an eps far above the gradient a step is lr · gradient / eps, with one far below it is lr."""
    for eps, step in ((1e3, 1e-3 * 0.01), (1e-12, 1e-3)):
        weight = nn.Linear(1, 1, bias=False)
        changes = {"SOLVER.BASE_LR": 1e-3, "SOLVER.WEIGHT_DECAY": 0.0, "SOLVER.ADAM_EPS": eps}
        optimizer, before = build_optimizer(tiny_config(changes), weight), weight.weight.item()
        weight.weight.grad = torch.full((1, 1), 10.0)
        optimizer.step()
        assert before - weight.weight.item() == pytest.approx(step, rel=0.02)


def test_rates_in_the_log_are_named_by_part() -> None:
    assert learning_rates(build_optimizer(tiny_config(SOLVER), tiny_model())) == pytest.approx(
        {"lr": 0.01, "lr_backbone": 0.001}
    )


def test_an_unknown_optimizer_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="SOLVER.OPTIMIZER is 'LION'; use one of: ADAMW, SGD"):
        build_optimizer(tiny_config({"SOLVER.OPTIMIZER": "LION"}), tiny_model())


def test_schedule_falls_as_a_power_in_every_group() -> None:
    changes = {
        **SOLVER,
        "SOLVER.LR_SCHEDULER_NAME": "WarmupPolyLR",
        "SOLVER.MAX_ITER": 10,
        "SOLVER.WARMUP_ITERS": 0,
        "SOLVER.WARMUP_FACTOR": 1.0,
    }
    cfg = tiny_config(changes)
    optimizer = build_optimizer(cfg, Small())
    scheduler = build_lr_scheduler(cfg, optimizer)
    for iteration in range(10):
        factor = (1 - iteration / 10) ** 0.9
        rates = {group["lr"] for group in optimizer.param_groups}
        assert sorted(rates) == pytest.approx([0.001 * factor, 0.01 * factor])
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("kind", ["ADAMW", "SGD"])
def test_one_kernel_for_all_parameters_moves_them_as_one_after_the_other(kind: str) -> None:
    models = [Small(), Small()]
    models[1].load_state_dict(models[0].state_dict())
    cfg = tiny_config({**SOLVER, "SOLVER.OPTIMIZER": kind})
    fused = build_optimizer(cfg, models[0])
    assert all(group["fused"] for group in fused.param_groups)
    plain = build_optimizer(cfg, models[1])
    for group in plain.param_groups:
        group["fused"], group["foreach"] = False, False
    for seed in range(3):
        for model, optimizer in zip(models, (fused, plain), strict=True):
            generator = torch.Generator().manual_seed(seed)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
