"""Steps of the trainer on a model of one parameter, where every number can be counted."""

from typing import Any

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from mask_former.optimizer import clip_full_model
from mask_former.trainer import MixedPrecisionStep


class Slope(nn.Module):
    """Loss = weight · x: the gradient is x, whatever the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0]))

    def forward(self, data: list[dict[str, Any]]) -> dict[str, Tensor]:
        return {"loss": (self.weight * data[0]["x"]).sum()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("x", "step"), [(3.0, 0.01), (0.004, 0.004)])
def test_clipping_sees_the_gradients_without_the_loss_scale(
    dtype: torch.dtype, x: float, step: float
) -> None:
    model = Slope()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    clip_full_model(optimizer, max_norm=0.01)
    trainer = MixedPrecisionStep(model.train(), [[{"x": torch.tensor(x)}]], optimizer, "cpu", dtype)
    with EventStorage():
        trainer.iter = 0
        trainer.run_step()
    assert model.weight.item() == pytest.approx(1 - step, rel=1e-4)


def test_an_overflow_skips_the_step_and_lowers_the_scale() -> None:
    model = Slope()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    trainer = MixedPrecisionStep(
        model.train(), [[{"x": torch.tensor(3e38)}]], optimizer, "cpu", torch.float16
    )
    scale = trainer.scaler.get_scale()
    with EventStorage():
        trainer.iter = 0
        trainer.run_step()
    assert model.weight.item() == 1.0
    assert trainer.state_dict()["grad_scaler"]["scale"] == scale / 2
