"""What a whole training step waits for, and that its fast parts give the numbers of the plain ones."""

import argparse
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
from tools.benchmarks.measure import peak_memory
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

    tensor = torch.tensor

    def made_on_the_host(*arguments: Any, **options: Any) -> Tensor:
        assert "device" not in options, "a tensor made of numbers on a device is a copy that is waited for"
        return tensor(*arguments, **options)

    step = fast_step(pisr_model(), amp_dtype=dtype)
    step(0, [batch()])  # the optimiser makes its moments
    monkeypatch.setattr(torch, "tensor", made_on_the_host)
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU is visible")
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_a_step_on_a_gpu_has_no_hidden_waiting(
    dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = fast_step(pisr_model().cuda(), amp_dtype=dtype)
    step(0, [batch()])
    tolist = Tensor.tolist

    def allowed(values: Tensor) -> Any:
        torch.cuda.set_sync_debug_mode("default")
        numbers = tolist(values)
        torch.cuda.set_sync_debug_mode("error")
        return numbers

    monkeypatch.setattr(Tensor, "tolist", allowed)
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = step(1, [batch()])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert result.losses and result.statistics


def test_the_fast_step_is_the_plain_one() -> None:
    fast = pisr_model()
    plain = copy.deepcopy(fast)
    groups = parameter_groups(
        make_plain(plain), lr=1e-4, weight_decay=1e-4, multipliers={"backbone": 0.1}, weight_decay_norm=0.0
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


def test_the_benchmark_foretells_the_memory_of_a_larger_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "WAYS", {"MaskFormer": benchmark.WAYS["MaskFormer"]})
    monkeypatch.setattr(benchmark, "SAMPLED", (2, 3))
    sizes = ["--device", "cpu", "--size", "160", "--depth", "18", "--targets", "2"]
    benchmark.main([*sizes, "--fits", "1", "16", "--output", str(tmp_path)])
    (row,) = json.loads((tmp_path / "step_batches.json").read_text())["rows"]
    fixed = row["held GB"] + row["3 images GB"] - 3 * row["each further GB"]
    for gigabytes in (1, 16):
        batch = row[f"{gigabytes} GB"]
        assert fixed + batch * row["each further GB"] <= gigabytes
        assert fixed + (batch + 1) * row["each further GB"] > gigabytes

    options = argparse.Namespace(device="cpu", depth=18, amp="none", channels_last=True, compile=False)
    step = benchmark.own_step(benchmark.configuration(benchmark.BASELINE, options), plain=False)
    given = benchmark.samples(4, 160, 2, 150)
    benchmark.whole_step(step, given[:1])
    measured = peak_memory(lambda: benchmark.whole_step(step, given)) / benchmark.GB
    foretold = row["3 images GB"] + row["each further GB"]
    assert foretold == pytest.approx(measured, rel=0.05)
