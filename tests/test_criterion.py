"""The training loss by hand, its normalisation, images without ground truth, weights that must fit losses.

Shapes: Q queries · C classes without "no object".
"""

import math

import pytest
import torch
from detectron2.utils import comm

from mask_former.criterion import SetCriterion, weigh
from mask_former.losses import dice_loss, focal_loss
from mask_former.matcher import HungarianMatcher, Target
from mask_former.predictor import Predictions
from tests.tiny import tiny_config


def criterion(num_earlier_layers: int = 0, num_classes: int = 2, **weights: float) -> SetCriterion:
    return SetCriterion(
        num_classes=num_classes, matcher=HungarianMatcher(), num_earlier_layers=num_earlier_layers, **weights
    )


def target(labels: list[int], size: int = 8, seed: int = 0) -> Target:
    masks = torch.rand(len(labels), size, size, generator=torch.Generator().manual_seed(seed)) > 0.5
    return {"labels": torch.tensor(labels, dtype=torch.int64), "masks": masks}


def outputs(
    images: int, queries: int = 4, num_classes: int = 2, layers: int = 1, seed: int = 0
) -> Predictions:
    """Random predictions of masks half the size of `target`'s; all leaves ask for gradients."""
    generator = torch.Generator().manual_seed(seed)
    predictions = [
        {
            "pred_logits": torch.randn(
                images, queries, num_classes + 1, generator=generator
            ).requires_grad_(),
            "pred_masks": torch.randn(images, queries, 4, 4, generator=generator).requires_grad_(),
        }
        for _ in range(layers)
    ]
    return {**predictions[-1], "aux_outputs": predictions[:-1]}


def test_classification_is_a_weighted_mean() -> None:
    """Query 0 has the mask of the target (class 0), query 1 is "no object", which weighs 0.1."""
    prediction: Predictions = {
        "pred_logits": torch.tensor([[[math.log(2), 0.0, 0.0], [0.0, 0.0, math.log(6)]]]),
        "pred_masks": torch.stack([torch.full((2, 2), 9.0), torch.full((2, 2), -9.0)])[None],
        "aux_outputs": [],
    }
    truth: list[Target] = [{"labels": torch.tensor([0]), "masks": torch.ones(1, 2, 2, dtype=torch.bool)}]
    # −log P of the right class: query 0 has 2/4, query 1 has 6/8
    expected = (1 * math.log(2) + 0.1 * math.log(8 / 6)) / (1 + 0.1)
    assert criterion()(prediction, truth)["loss_ce"].item() == pytest.approx(expected)


def test_mask_losses_compare_upsampled_logits_and_divide_by_the_targets() -> None:
    """Two images of one and three targets: sums over matched pairs, divided by 4."""
    prediction, truth = outputs(2), [target([0]), target([1, 0, 1], seed=1)]
    module = criterion()
    losses = module(prediction, truth)
    focal = dice = 0.0
    for image, (queries, segments) in enumerate(module.matcher(prediction, truth)):
        logits = torch.nn.functional.interpolate(
            prediction["pred_masks"][image : image + 1, queries], size=(8, 8), mode="bilinear"
        )[0].flatten(1)
        masks = truth[image]["masks"][segments].flatten(1).float()
        focal += focal_loss(logits, masks).sum().item()
        dice += dice_loss(logits, masks).sum().item()
    assert losses["loss_mask"].item() == pytest.approx(focal / 4, rel=1e-5)
    assert losses["loss_dice"].item() == pytest.approx(dice / 4, rel=1e-5)


def test_targets_without_a_query_still_count_in_the_division() -> None:
    """One query, two identical targets: one pair is lost, the sum is divided by 2."""
    prediction, one = outputs(1, queries=1), target([0])
    twice: Target = {"labels": torch.tensor([0, 0]), "masks": one["masks"].expand(2, 8, 8)}
    alone, both = criterion()(prediction, [one]), criterion()(prediction, [twice])
    assert both["loss_mask"].item() == pytest.approx(alone["loss_mask"].item() / 2)


def test_totals_by_hand() -> None:
    """Three queries an image; "no object" weighs 0.1: images of no, one and two targets have 3, 2 and 1."""
    totals = criterion().totals([torch.tensor([]).long(), torch.tensor([1]), torch.tensor([0, 1])], 3)
    assert totals.targets.item() == 3
    assert totals.class_weight.item() == pytest.approx(3 * 1 + 6 * 0.1)
    alone = criterion().totals([torch.tensor([]).long()], 3)
    assert alone.targets.item() == 1 and alone.class_weight.item() == pytest.approx(0.3)
    crowded = criterion().totals([torch.tensor([0, 1, 1, 0, 1])], 3)  # two targets have no query
    assert crowded.targets.item() == 5 and crowded.class_weight.item() == 3


def test_totals_are_means_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    other = torch.tensor([7.0, 4.0])  # the other process's sums
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda sums: sums.add_(other))
    totals = criterion().totals([torch.tensor([0]), torch.tensor([1, 1])], 3)
    assert totals.targets.item() == (3 + 4) / 2
    assert totals.class_weight.item() == pytest.approx((3.3 + 7) / 2)
    other.zero_()
    assert criterion().totals([torch.tensor([]).long()], 3).targets.item() == 0.5  # one in all, for two


def test_micro_batches_add_up_to_the_batch() -> None:
    """Losses and gradients of three images at once, and as 1 + 2, one of them without targets."""
    module = criterion(num_earlier_layers=1)
    truth = [target([0, 1]), target([]), target([1, 1, 0], seed=3)]
    whole, parts = outputs(3, layers=2), outputs(3, layers=2)
    expected = module(whole, truth)
    sum(expected.values()).backward()
    totals = module.totals([one["labels"] for one in truth], num_queries=4)
    found = dict.fromkeys(expected, 0.0)
    for images in (slice(0, 1), slice(1, 3)):
        part: Predictions = {
            **{name: parts[name][images] for name in ("pred_logits", "pred_masks")},
            "aux_outputs": [{name: layer[name][images] for name in layer} for layer in parts["aux_outputs"]],
        }
        losses = module(part, truth[images], totals)
        sum(losses.values()).backward()
        found = {name: found[name] + losses[name].item() for name in found}
    assert found == pytest.approx({name: loss.item() for name, loss in expected.items()}, rel=1e-6)
    for one, other in zip([whole, *whole["aux_outputs"]], [parts, *parts["aux_outputs"]], strict=True):
        for name in ("pred_logits", "pred_masks"):
            torch.testing.assert_close(other[name].grad, one[name].grad, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("images", [1, 2])
def test_no_target_in_any_image(images: int) -> None:
    prediction = outputs(images, layers=3)
    module = criterion(num_earlier_layers=2)
    losses = module(prediction, [target([]) for _ in range(images)])
    assert losses.keys() == module.weight_dict.keys()
    for name, loss in losses.items():
        assert loss.isfinite() and (loss > 0) == name.startswith("loss_ce"), name
    sum(losses.values()).backward()
    for layer in (prediction, *prediction["aux_outputs"]):
        assert layer["pred_logits"].grad.abs().sum() > 0
        assert (
            layer["pred_masks"].grad.abs().sum() == 0
        )  # there, so that every parameter has a gradient, and zero


def test_an_image_without_targets_adds_nothing_to_the_mask_losses() -> None:
    both = outputs(2)
    first: Predictions = {name: both[name][:1] for name in ("pred_logits", "pred_masks")} | {
        "aux_outputs": []
    }
    with_empty, alone = criterion()(both, [target([1]), target([])]), criterion()(first, [target([1])])
    for name in ("loss_mask", "loss_dice"):
        assert with_empty[name].item() == pytest.approx(alone[name].item())


def test_every_layer_has_its_own_matching() -> None:
    """The first layer has the queries in another order, and still the losses of the last layer."""
    last = outputs(1)
    order = [2, 0, 3, 1]
    earlier = {name: last[name][:, order] for name in ("pred_logits", "pred_masks")}
    losses = criterion(num_earlier_layers=1)({**last, "aux_outputs": [earlier]}, [target([0, 1])])
    for name in ("loss_ce", "loss_mask", "loss_dice"):
        assert losses[f"{name}_0"].item() == pytest.approx(losses[name].item())


def test_losses_do_not_depend_on_the_order_of_targets() -> None:
    prediction, truth = outputs(1), target([0, 1, 1])
    turned: Target = {"labels": truth["labels"].flip(0), "masks": truth["masks"].flip(0)}
    first, second = criterion()(prediction, [truth]), criterion()(prediction, [turned])
    for name in first:
        assert second[name].item() == pytest.approx(first[name].item())


def test_names_and_weights_of_every_layer() -> None:
    module = criterion(num_earlier_layers=2, mask_weight=20.0, dice_weight=3.0)
    assert module.weight_dict == {
        **{"loss_ce": 1.0, "loss_mask": 20.0, "loss_dice": 3.0},
        **{"loss_ce_0": 1.0, "loss_mask_0": 20.0, "loss_dice_0": 3.0},
        **{"loss_ce_1": 1.0, "loss_mask_1": 20.0, "loss_dice_1": 3.0},
    }


@pytest.mark.parametrize(("deep_supervision", "earlier"), [(True, 2), (False, 0)])
def test_built_from_a_config(deep_supervision: bool, earlier: int) -> None:
    changes = {
        "MODEL.MASK_FORMER.DEEP_SUPERVISION": deep_supervision,
        "MODEL.MASK_FORMER.NO_OBJECT_WEIGHT": 0.25,
        "MODEL.MASK_FORMER.MASK_WEIGHT": 7.0,
        "MODEL.MASK_FORMER.DICE_WEIGHT": 3.0,
    }
    module = SetCriterion(tiny_config(changes))
    assert len(module.weight_dict) == 3 * (1 + earlier)
    assert (module.weight_dict["loss_mask"], module.weight_dict["loss_dice"]) == (7.0, 3.0)
    assert (module.matcher.class_weight, module.matcher.mask_weight, module.matcher.dice_weight) == (
        1.0,
        7.0,
        3.0,
    )
    assert module.empty_weight.tolist() == [1, 1, 1, 1, 1, 0.25]
    assert list(module.state_dict()) == ["empty_weight"]


def test_weigh_multiplies() -> None:
    weighted = weigh({"a": torch.tensor(2.0), "b": torch.tensor(3.0)}, {"a": 10.0, "b": 0.5})
    assert {name: loss.item() for name, loss in weighted.items()} == {"a": 20.0, "b": 1.5}


def test_weigh_refuses_a_loss_without_weight_and_a_weight_without_loss() -> None:
    loss = torch.tensor(1.0)
    with pytest.raises(ValueError, match=r"losses without a weight: \['b'\]; weights without a loss: \[\]"):
        weigh({"a": loss, "b": loss}, {"a": 1.0})
    with pytest.raises(ValueError, match=r"losses without a weight: \[\]; weights without a loss: \['b'\]"):
        weigh({"a": loss}, {"a": 1.0, "b": 1.0})


def test_diverged_predictions_stop_training() -> None:
    prediction = outputs(1)
    prediction["pred_logits"] = torch.full_like(prediction["pred_logits"], math.nan)
    with pytest.raises(FloatingPointError, match="diverged"):
        criterion()(prediction, [target([0])])


def test_half_precision_predictions_have_float32_losses() -> None:
    prediction = outputs(1)
    half: Predictions = {name: prediction[name].bfloat16() for name in ("pred_logits", "pred_masks")} | {
        "aux_outputs": []
    }
    losses = criterion()(half, [target([0, 1])])
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
