"""Predictions that are not finite, or at the end of float16, in the real model's loss and in a real run."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy_run import arguments, exit_code, render

from mask_former.criterion import SetCriterion, weigh
from mask_former.errors import InputError
from mask_former.matcher import HungarianMatcher, NonFiniteCosts
from mask_former.optimizer import Clipping
from mask_former.training.divergence import TOLERATED, DivergenceGuard
from mask_former.training.step import TrainingStep

HALF_MAX = torch.finfo(torch.float16).max  # 65504


class Predicting(nn.Module):
    """Logits given by a parameter, with the values of the queries of the first image put in."""

    def __init__(self, class_value: float = 0.0, mask_value: float = 0.0, dtype: Any = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.logits = nn.Parameter(torch.randn(2, 4, 3, generator=generator))
        self.masks = nn.Parameter(torch.randn(2, 4, 4, 4, generator=generator))
        self.class_value, self.mask_value, self.dtype = class_value, mask_value, dtype
        self.criterion = SetCriterion(num_classes=2, matcher=HungarianMatcher(), num_earlier_layers=0)

    def loss_totals(self, samples: list[dict[str, Any]]) -> Any:
        return self.criterion.totals([sample["target"]["labels"] for sample in samples], 4)

    def forward(self, samples: list[dict[str, Any]], totals: Any) -> dict[str, Tensor]:
        logits, masks = self.logits.clone(), self.masks.clone()
        is_spoilt = samples[0]["image_id"] == 0
        if self.class_value and is_spoilt:
            logits[0, 1, 0] = self.class_value
        if self.mask_value and is_spoilt:
            masks[0, 1] = self.mask_value
        outputs: Any = {
            "pred_logits": logits.to(self.dtype),
            "pred_masks": masks.to(self.dtype),
            "aux_outputs": [],
        }
        targets = [sample["target"] for sample in samples]
        return weigh(self.criterion(outputs, targets, totals), self.criterion.weight_dict)


def batch(first: int = 0) -> list[list[dict[str, Any]]]:
    """One micro-batch of the images `first` and the next; where it is not 0, the logits stay finite."""
    masks = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(1)) > 0.5
    one = {"labels": torch.tensor([0, 1]), "masks": masks}
    return [
        [
            {
                "target": one,
                "instances": [0, 0],
                "image": torch.zeros(3, 8, 8),
                "image_id": i,
                "file_name": f"{i}",
            }
            for i in (first, first + 1)
        ]
    ]


def step_of(model: Predicting, folder: Path | None = None) -> TrainingStep:
    optimizer = torch.optim.SGD([model.logits, model.masks], lr=0.1)
    return TrainingStep(model.train(), optimizer, Clipping(), guard=DivergenceGuard(folder))


@pytest.mark.parametrize(
    ("where", "value"),
    [("class_value", math.nan), ("class_value", math.inf)]
    + [("mask_value", value) for value in (math.nan, math.inf, -math.inf)],
)
def test_logits_that_are_not_finite_are_tolerated_then_reported(
    where: str, value: float, tmp_path: Path
) -> None:
    model = Predicting(**{where: value})
    step, before = step_of(model, tmp_path), [model.logits.clone(), model.masks.clone()]
    for iteration in range(TOLERATED):
        assert step(iteration, batch()).skipped
    assert torch.equal(model.logits, before[0]) and torch.equal(model.masks, before[1])
    with pytest.raises(InputError, match=f"diverged: {TOLERATED + 1} iterations in a row up to 3 .* 1 cost"):
        step(TOLERATED, [*batch(first=2), *batch()])
    report = torch.load(tmp_path / "divergence/iteration_0000003_process_0.pth", weights_only=True)
    assert report["image_ids"] == [["2", "3"], ["0", "1"]]
    assert set(report["losses"][0]) == set(model.criterion.weight_dict)
    matching = report["matching"]
    assert matching["micro_batch"].item() == 1 and matching["image"].item() == 0
    assert matching["cost"].shape == (4, 2)
    assert not matching["cost"].isfinite().all()
    assert not matching["pred_logits" if where == "class_value" else "pred_masks"].isfinite().all()


def test_a_class_that_is_ruled_out_has_a_cost_like_any_other() -> None:
    step = step_of(Predicting(class_value=-math.inf))
    assert not step(0, batch()).skipped and step.guard.total == 0


@pytest.mark.parametrize("value", [HALF_MAX, -HALF_MAX])
@pytest.mark.parametrize("where", ["class_value", "mask_value"])
def test_saturated_float16_logits_have_finite_costs_and_losses(value: float, where: str) -> None:
    model = Predicting(**{where: value}, dtype=torch.float16)
    step = step_of(model)
    before = model.masks.clone()
    result = step(0, batch())
    assert not result.skipped and step.guard.total == 0
    assert all(math.isfinite(loss) for loss in result.losses.values()) and math.isfinite(result.gradient_norm)
    assert not torch.equal(model.masks, before)


def test_a_pair_whose_cost_is_not_finite_is_the_last_to_be_chosen() -> None:
    matcher = HungarianMatcher()
    matcher.tolerated = NonFiniteCosts()
    prediction: Any = {"pred_logits": torch.zeros(1, 3, 3), "pred_masks": torch.zeros(1, 3, 2, 2)}
    prediction["pred_masks"][0, 1] = math.nan
    targets: Any = [{"labels": torch.tensor([0, 1]), "masks": torch.ones(2, 2, 2, dtype=torch.bool)}]
    ((queries, _),) = matcher(prediction, targets)
    assert queries.tolist() == [0, 2] and matcher.tolerated.count == 1
    assert matcher.tolerated.first["pred_masks"].isnan().sum() == 4
    matcher.tolerated.clear()
    assert matcher.tolerated.count == 0 and not matcher.tolerated.first


def test_a_run_that_diverges_stops_with_one_line_and_keeps_its_checkpoints(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, folder = render(tmp_path / "datasets"), tmp_path / "run"
    rate = {"SOLVER__BASE_LR": 1e25, "SOLVER__WARMUP_ITERS": 0, "SOLVER__CLIP_GRADIENTS__ENABLED": False}
    options = {**rate, "SOLVER__MAX_ITER": 40, "SOLVER__CHECKPOINT_PERIOD": 1, "LOG__PERIOD": 1}
    assert exit_code(data, arguments(folder, **options)) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "training has diverged: 4 iterations in a row" in lines[0]
    assert "lower SOLVER.BASE_LR" in lines[0] and str(folder / "divergence") in lines[0]
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    assert [row["skipped_steps"] for row in rows][-TOLERATED:] == [1, 2, 3]
    (report,) = (folder / "divergence").iterdir()
    content = torch.load(report, weights_only=True)
    assert content["iteration"] == rows[-1]["iteration"] + 1 and len(content["image_ids"][0]) == 2
    last = torch.load(folder / (folder / "last_checkpoint").read_text(), weights_only=True)
    assert all(value.isfinite().all() for value in last["model"].values() if value.is_floating_point())
