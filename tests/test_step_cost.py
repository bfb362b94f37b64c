"""What a whole training step waits for, and that its fast parts give the numbers of the plain ones."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mask_former import matcher
from mask_former.matcher import HungarianMatcher
from mask_former.optimizer import Clipping, build_optimizer, parameter_groups
from mask_former.training.step import TrainingStep
from tests.synchronisation import Synchronisations
from tests.tiny import resnet, sample, tiny_config
from tests.tiny_pisr import batch, tiny_pisr, wake
from tools.benchmarks import step as benchmark
from tools.benchmarks.plain_step import make_plain, plain_optimizer

RESNET = resnet(18)


def pisr_model() -> nn.Module:
    model = tiny_pisr(RESNET)
    wake(model)
    return model


def fast_step(model: nn.Module, **options: Any) -> TrainingStep:
    return TrainingStep(model, build_optimizer(tiny_config(RESNET), model), Clipping(0.01), **options)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_step_waits_for_the_matching_and_for_its_numbers_alone(
    dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[str] = []
    to_host, tolist = matcher.to_host, Tensor.tolist

    def counted_to_host(tensor: Tensor) -> Tensor:
        copies.append("matching")
        return to_host(tensor)

    def counted_tolist(tensor: Tensor) -> Any:
        copies.append("numbers")
        return tolist(tensor)

    step = fast_step(pisr_model(), amp_dtype=dtype)
    step(0, [batch()])  # the optimiser makes its moments
    monkeypatch.setattr(matcher, "to_host", counted_to_host)
    monkeypatch.setattr(Tensor, "tolist", counted_tolist)
    with Synchronisations() as seen:

        def on_the_host(function: Callable[..., Any]) -> Callable[..., Any]:
            """What it looks at is on the CPU by then, as its checks of each cost matrix."""

            def call(*arguments: Any) -> Any:
                before = len(seen.operations)
                returned = function(*arguments)
                del seen.operations[before:]
                return returned

            return call

        monkeypatch.setattr(matcher, "assign", on_the_host(matcher.assign))
        monkeypatch.setattr(HungarianMatcher, "finite", on_the_host(HungarianMatcher.finite))
        result = step(1, [batch()])
    assert not result.skipped and result.statistics
    assert copies == ["matching", "numbers"]
    assert not seen.operations


def test_the_fast_step_is_the_plain_one() -> None:
    fast = pisr_model()
    plain = copy.deepcopy(fast)
    groups = parameter_groups(
        make_plain(plain), lr=1e-4, weight_decay=1e-4, backbone_multiplier=0.1, weight_decay_norm=0.0
    )
    cfg = tiny_config({**RESNET, "SOLVER.BASE_LR": 1e-4, "SOLVER.WEIGHT_DECAY": 1e-4})
    steps = (
        TrainingStep(fast, build_optimizer(cfg, fast), Clipping(0.01)),
        TrainingStep(plain, plain_optimizer(groups), Clipping(0.01)),
    )
    for iteration in range(2):
        mine, theirs = (step(iteration, [[sample(iteration, 64, 96)]]) for step in steps)
        assert mine.losses == pytest.approx(theirs.losses, rel=1e-3)
        assert mine.gradient_norm == pytest.approx(theirs.gradient_norm, rel=1e-3)
    gradients = [
        torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        for model in (fast, plain)
    ]
    assert (gradients[0] - gradients[1]).norm() < 1e-2 * gradients[1].norm()


def test_statistics_are_those_of_the_last_micro_batch() -> None:
    step = fast_step(pisr_model())
    told = step(0, [[sample(1)], [sample(2)]]).statistics
    last = step.network.criterion.statistics
    assert told == {name: value.item() for name, value in last.items()} and "pisr/pixel_residual" in told


def test_the_benchmark_tells_the_largest_batches_that_fit(tmp_path: Path) -> None:
    sizes = ["--device", "cpu", "--size", "64", "--depth", "18", "--targets", "2", "--no-plain"]
    benchmark.main([*sizes, "--fits", "1", "16", "--output", str(tmp_path)])
    rows = json.loads((tmp_path / "step_batches.json").read_text())["rows"]
    assert [row["way"] for row in rows] == ["MaskFormer", "MaskFormer + PISR"]
    for row in rows:
        fixed = row["held GB"] + row["1 image GB"] - row["each further GB"]
        for gigabytes in (1, 16):
            batch = row[f"{gigabytes} GB"]
            assert fixed + batch * row["each further GB"] <= gigabytes
            assert fixed + (batch + 1) * row["each further GB"] > gigabytes
