"""The memory-saving mask losses are the plain ones of upsampled logits, and so are their gradients."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mask_former import upsampled_losses
from mask_former.losses import dice_loss, focal_loss
from mask_former.upsampled_losses import upsampled_mask_losses

SIZES = pytest.mark.parametrize(
    ("small", "large"), [((4, 6), (16, 24)), ((3, 5), (7, 4)), ((4, 4), (4, 4)), ((8, 8), (3, 3))]
)


def pairs(
    number: int, small: tuple[int, int], large: tuple[int, int], scale: float = 3.0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    logits = scale * torch.randn((number, *small), generator=generator, dtype=torch.float64)
    return logits, torch.rand((number, *large), generator=generator) > 0.5


def plain(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    upsampled = F.interpolate(logits[:, None], size=masks.shape[-2:], mode="bilinear", align_corners=False)
    flat, truth = upsampled.flatten(1), masks.flatten(1).to(logits.dtype)
    return focal_loss(flat, truth).sum(), dice_loss(flat, truth).sum()


@SIZES
@pytest.mark.parametrize("weights", [(20.0, 1.0), (1.0, 0.0), (0.0, 1.0)], ids=["both", "focal", "dice"])
def test_values_and_gradients(
    small: tuple[int, int], large: tuple[int, int], weights: tuple[float, float]
) -> None:
    values, gradients = [], []
    for losses in (upsampled_mask_losses, plain):
        logits, masks = pairs(3, small, large)
        focal, dice = losses(logits.requires_grad_(), masks)
        (weights[0] * focal + weights[1] * dice).backward()
        values.append(torch.stack((focal, dice)).detach())
        gradients.append(logits.grad)
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_gradient_by_finite_differences() -> None:
    logits, masks = pairs(2, (2, 3), (5, 6), scale=1.0)
    assert torch.autograd.gradcheck(lambda x: upsampled_mask_losses(x, masks), (logits.requires_grad_(),))


@pytest.mark.parametrize("pixels_at_once", [1, 16 * 24, 2 * 16 * 24])
def test_the_number_of_masks_at_once_does_not_matter(
    monkeypatch: pytest.MonkeyPatch, pixels_at_once: int
) -> None:
    logits, masks = pairs(5, (4, 6), (16, 24))
    whole = logits.clone().requires_grad_()
    sum(upsampled_mask_losses(whole, masks)).backward()
    monkeypatch.setattr(upsampled_losses, "PIXELS_AT_ONCE", pixels_at_once)
    parts = logits.clone().requires_grad_()
    sum(upsampled_mask_losses(parts, masks)).backward()
    torch.testing.assert_close(parts.grad, whole.grad)


def test_no_pair_is_zero_and_keeps_the_graph() -> None:
    logits = torch.zeros(3, 4, 6, requires_grad=True)
    focal, dice = upsampled_mask_losses(logits[:0], torch.zeros(0, 16, 24, dtype=torch.bool))
    assert (focal.item(), dice.item()) == (0, 0)
    (focal + dice).backward()
    assert torch.equal(logits.grad, torch.zeros(3, 4, 6))


def test_certain_mistakes_have_finite_losses_and_gradients() -> None:
    logits = torch.tensor([[[-300.0, 300.0]]], requires_grad=True)
    focal, dice = upsampled_mask_losses(logits, torch.tensor([[[True, False]]]))
    (focal + dice).backward()
    assert focal.item() == pytest.approx((0.25 * 300 + 0.75 * 300) / 2)
    assert dice.isfinite() and logits.grad.isfinite().all()


def test_without_gradient_nothing_is_kept() -> None:
    logits, masks = pairs(3, (4, 6), (16, 24))
    with torch.no_grad():
        focal, dice = upsampled_mask_losses(logits, masks)
    assert not focal.requires_grad
    torch.testing.assert_close((focal, dice), plain(logits, masks))


def test_what_is_kept_for_the_gradient_has_the_small_size() -> None:
    kept: list[int] = []
    logits, masks = pairs(6, (5, 5), (80, 80))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        upsampled_mask_losses(logits.requires_grad_(), masks)
    assert sum(kept) == 2 * logits.numel()
