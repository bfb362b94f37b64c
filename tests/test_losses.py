"""Focal and dice losses on masks of two pixels, computed by hand; costs are the same losses of every pair."""

import math

import pytest
import torch

from mask_former.losses import dice_cost, dice_loss, focal_cost, focal_loss

LOGITS = torch.tensor([[0.0, math.log(3)]])  # probabilities 1/2 and 3/4
FIRST, SECOND, NONE, BOTH = ([1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [1.0, 1.0])
INSIDE = [0.25 * (1 / 2) ** 2 * math.log(2), 0.25 * (1 / 4) ** 2 * math.log(4 / 3)]  # α (1−p)² · −log p
OUTSIDE = [0.75 * (1 / 2) ** 2 * math.log(2), 0.75 * (3 / 4) ** 2 * math.log(4)]  # (1−α) p² · −log(1−p)


@pytest.mark.parametrize(
    ("mask", "pixels"),
    [
        (FIRST, (INSIDE[0], OUTSIDE[1])),
        (SECOND, (OUTSIDE[0], INSIDE[1])),
        (NONE, (OUTSIDE[0], OUTSIDE[1])),
        (BOTH, (INSIDE[0], INSIDE[1])),
    ],
)
def test_focal_is_the_mean_over_pixels(mask: list[float], pixels: tuple[float, float]) -> None:
    assert focal_loss(LOGITS, torch.tensor([mask])).tolist() == pytest.approx([sum(pixels) / 2])


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (FIRST, 1 - (2 * 1 / 2 + 1) / (5 / 4 + 1 + 1)),
        (SECOND, 1 - (2 * 3 / 4 + 1) / (5 / 4 + 1 + 1)),
        (NONE, 1 - 1 / (5 / 4 + 1)),
        (BOTH, 1 - (2 * 5 / 4 + 1) / (5 / 4 + 2 + 1)),
    ],
)
def test_dice_is_smoothed_by_one(mask: list[float], expected: float) -> None:
    assert dice_loss(LOGITS, torch.tensor([mask])).tolist() == pytest.approx([expected])


def test_a_perfect_mask_costs_nothing() -> None:
    logits, mask = torch.tensor([[60.0, -60.0]]), torch.tensor([FIRST])
    assert focal_loss(logits, mask).item() == pytest.approx(0, abs=1e-6)
    assert dice_loss(logits, mask).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("cost", "loss"), [(focal_cost, focal_loss), (dice_cost, dice_loss)])
def test_costs_are_the_losses_of_every_pair(cost, loss) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(5, 12, generator=generator)
    masks = (torch.rand(3, 12, generator=generator) > 0.5).float()
    pairs = torch.stack([loss(logits, mask.expand_as(logits)) for mask in masks], dim=1)
    torch.testing.assert_close(cost(logits, masks), pairs)


@pytest.mark.parametrize("loss", [focal_loss, dice_loss])
def test_certain_mistakes_have_finite_losses_and_gradients(loss) -> None:
    logits = torch.tensor([[-300.0, 300.0]], requires_grad=True)
    value = loss(logits, torch.tensor([FIRST])).sum()
    value.backward()
    assert value.isfinite() and logits.grad.isfinite().all()


@pytest.mark.parametrize("loss", [focal_loss, dice_loss])
def test_no_pair_at_all_keeps_the_graph(loss) -> None:
    logits = torch.zeros(2, 4, requires_grad=True)
    loss(logits[:0], torch.zeros(0, 4)).sum().backward()
    assert logits.grad.tolist() == torch.zeros(2, 4).tolist()


@pytest.mark.parametrize("cost", [focal_cost, dice_cost])
def test_costs_without_targets_have_no_columns(cost) -> None:
    assert cost(torch.zeros(3, 4), torch.zeros(0, 4)).shape == (3, 0)
