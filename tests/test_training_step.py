"""One optimiser step on a model of one parameter, where every number can be counted."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mask_former.errors import InputError
from mask_former.optimizer import Clipping
from mask_former.training.divergence import TOLERATED, DivergenceGuard
from mask_former.training.step import TrainingStep

CLIP, MEASURE = Clipping(0.01), Clipping()


class Slope(nn.Module):
    """Loss = weight · the sum of x over a micro-batch / their total: the gradient is the mean of x."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0]))

    def loss_totals(self, samples: list[dict[str, Any]]) -> int:
        return len(samples)

    def forward(self, samples: list[dict[str, Any]], totals: int) -> dict[str, Tensor]:
        return {"loss": (self.weight * sum(sample["x"] for sample in samples)).sum() / totals}


def sample(x: float) -> dict[str, Any]:
    return {"x": torch.tensor(x), "instances": [0], "image": torch.zeros(3, 2, 2), "image_id": f"id {x}"}


def slope_step(clip: Any = MEASURE, **options: Any) -> TrainingStep:
    model = Slope().train()
    return TrainingStep(model, torch.optim.SGD(model.parameters(), lr=1.0), clip, **options)


def weight(step: TrainingStep) -> float:
    return step.network.weight.item()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, None])
@pytest.mark.parametrize(("x", "moved"), [(3.0, 0.01), (0.004, 0.004)])
def test_clipping_sees_the_gradients_without_the_loss_scale(
    dtype: torch.dtype | None, x: float, moved: float
) -> None:
    step = slope_step(CLIP, amp_dtype=dtype)
    result = step(0, [[sample(x)]])
    assert weight(step) == pytest.approx(1 - moved, rel=1e-4)
    assert result.gradient_norm == pytest.approx(x, rel=1e-2)  # before clipping; bfloat16 has 8 bits


@pytest.mark.parametrize("cut", [[4], [2, 2], [1, 3], [1, 1, 1, 1]])
def test_micro_batches_make_the_step_of_the_whole_batch(cut: list[int]) -> None:
    samples = [sample(x) for x in (1.0, 2.0, 3.0, 6.0)]
    batch = [[samples.pop(0) for _ in range(size)] for size in cut]
    step = slope_step()
    result = step(0, batch)
    assert weight(step) == 1.0 - 3.0
    assert result.losses == {"loss": 3.0} and result.gradient_norm == 3.0
    assert result.num_targets == 4 and not result.skipped


@pytest.mark.parametrize("fused", [True, False])
def test_an_overflow_of_float16_lowers_the_scale_and_is_no_divergence(fused: bool) -> None:
    model = Slope().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, fused=fused)
    step = TrainingStep(model, optimizer, MEASURE, amp_dtype=torch.float16)
    scale = step.scaler.get_scale()
    result = step(0, [[sample(3e38)]])  # the loss is finite, scaled it is not
    assert weight(step) == 1.0 and not result.skipped and step.guard.total == 0
    assert step.state_dict()["scaler"]["scale"] == scale / 2


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(bad: float) -> None:
    step = slope_step()
    result = step(0, [[sample(1.0)], [sample(bad)]])
    assert result.skipped and weight(step) == 1.0 and step.guard.total == 1
    assert not step(1, [[sample(1.0)]]).skipped
    assert weight(step) == 0.0 and step.guard.in_a_row == 0 and step.guard.total == 1


def test_a_gradient_that_is_not_finite_counts_though_the_loss_is() -> None:
    class Root(Slope):
        def forward(self, samples: list[dict[str, Any]], totals: int) -> dict[str, Tensor]:
            return {"loss": (self.weight - self.weight.detach()).abs().sqrt().sum()}

    model = Root().train()
    step = TrainingStep(model, torch.optim.SGD(model.parameters(), lr=1.0), MEASURE)
    assert step(0, [[sample(1.0)]]).skipped and weight(step) == 1.0


def test_training_stops_after_the_tolerated_steps_in_a_row(tmp_path: Any) -> None:
    step = slope_step(guard=DivergenceGuard(tmp_path))
    for iteration in range(TOLERATED):
        step(iteration, [[sample(math.nan)]])
    step(TOLERATED, [[sample(1.0)]])  # a good one: counting begins anew
    for iteration in range(10, 10 + TOLERATED):
        step(iteration, [[sample(math.inf)]])
    with pytest.raises(
        InputError,
        match="diverged: 4 iterations in a row up to 13 .*losses loss on images id 5.0, id inf; lower",
    ):
        step(13, [[sample(5.0)], [sample(math.inf)]])
    report = torch.load(tmp_path / "divergence/iteration_0000013_process_0.pth", weights_only=True)
    assert report["iteration"] == 13 and report["image_ids"] == [["id 5.0"], ["id inf"]]
    assert report["losses"][0] == {"loss": 0.0} and math.isnan(report["losses"][1]["loss"])  # 0 · inf
    assert report["gradients_not_finite"] == ["weight"] and not report["gradients"]["weight"].isfinite().any()


def test_the_count_goes_on_after_a_resume() -> None:
    step, resumed = slope_step(), slope_step()
    step(0, [[sample(math.nan)]])
    resumed.load_state_dict(step.state_dict())
    assert resumed.guard.in_a_row == 1 and resumed.guard.total == 1


@pytest.mark.parametrize("before", [True, False])
def test_a_run_goes_on_fused_or_not(before: bool) -> None:
    def adam(fused: bool) -> TrainingStep:
        model = Slope().train()
        return TrainingStep(model, torch.optim.AdamW(model.parameters(), lr=0.5, fused=fused), MEASURE)

    step, resumed = adam(before), adam(not before)
    step(0, [[sample(2.0)]])
    resumed.load_state_dict(copy.deepcopy(step.state_dict()))  # as through a file
    assert [group["fused"] for group in resumed.optimizer.param_groups] == [not before]
    resumed.network.load_state_dict(step.network.state_dict())
    for each in (step, resumed):
        each(1, [[sample(3.0)]])
    assert weight(resumed) == pytest.approx(weight(step), rel=1e-6)


def test_a_resumed_optimiser_keeps_its_moments_and_takes_the_configured_rate() -> None:
    def adam(rate: float) -> TrainingStep:
        model = Slope().train()
        return TrainingStep(model, torch.optim.AdamW(model.parameters(), lr=rate), MEASURE)

    step, resumed = adam(0.5), adam(0.25)
    step(0, [[sample(2.0)]])
    resumed.load_state_dict(step.state_dict())
    assert resumed.optimizer.param_groups[0]["lr"] == 0.25
    moment = next(iter(resumed.optimizer.state.values()))["exp_avg"]
    assert moment.item() == pytest.approx(0.2)  # (1 - beta_1) * gradient


class Rooted(nn.Module):
    """Two parameters; the second one's gradient is infinite at 0, where its loss is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.good, self.bad = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(0.0))

    def loss_totals(self, samples: list[dict[str, Any]]) -> int:
        return len(samples)

    def forward(self, samples: list[dict[str, Any]], totals: int) -> dict[str, Tensor]:
        return {"loss": self.good.square() + self.bad.abs().sqrt()}


@pytest.mark.parametrize("clip", [CLIP, MEASURE])
def test_the_report_names_the_parameters_whose_gradients_were_not_finite_and_no_others(
    clip: Clipping, tmp_path: Any
) -> None:
    model = Rooted().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    step = TrainingStep(model, optimizer, clip, guard=DivergenceGuard(tmp_path))
    with pytest.raises(InputError, match="the gradient's norm is nan on images id 1.0"):
        for iteration in range(TOLERATED + 1):
            step(iteration, [[sample(1.0)]])
    (report,) = (tmp_path / "divergence").iterdir()
    assert torch.load(report, weights_only=True)["gradients_not_finite"] == ["bad"]


def test_float16_gradients_that_no_scale_makes_finite_end_training() -> None:
    """The scale is halved from 65536 until it is below 1; from then on it is no overflow of scaling."""
    model = Rooted().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    step = TrainingStep(model, optimizer, MEASURE, amp_dtype=torch.float16)
    with pytest.raises(InputError, match="diverged: 4 iterations in a row up to 20"):
        for iteration in range(100):
            step(iteration, [[sample(1.0)]])


def test_batch_norms_forget_a_step_that_is_left_out() -> None:
    class Normed(Slope):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(1)

        def forward(self, samples: list[dict[str, Any]], totals: int) -> dict[str, Tensor]:
            x = torch.stack([sample["x"] for sample in samples])[:, None]
            return {"loss": (self.weight * self.norm(x)).square().sum() / totals}

    model = Normed().train()
    step = TrainingStep(model, torch.optim.SGD(model.parameters(), lr=0.0), MEASURE)
    step(0, [[sample(1.0), sample(3.0)]])
    before = [buffer.clone() for buffer in model.buffers()]
    assert before[0].item() == pytest.approx(0.2)  # a tenth of the mean
    assert step(1, [[sample(math.nan), sample(3.0)]]).skipped
    assert all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))
