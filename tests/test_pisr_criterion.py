"""The two-stage loss around a criterion made for the purpose: names, weights, what gamma leaves out."""

import pytest
import torch

from pisr_maskformer.config import SettingError
from pisr_maskformer.criterion import TwoStageCriterion, stage_name

WEIGHTS = {"loss_ce": 1.0, "loss_mask": 20.0, "loss_ce_0": 1.0, "loss_mask_0": 20.0}


class CountingCriterion:
    """Losses are the sum and the mean of the prediction; counts how often it is asked."""

    def __init__(self):
        self.calls = 0

    def __call__(self, outputs, targets):
        self.calls += 1
        losses = {"loss_ce": outputs["values"].sum(), "loss_mask": outputs["values"].mean()}
        for layer, values in enumerate(outputs["earlier"]):
            losses |= {f"loss_ce_{layer}": values.sum(), f"loss_mask_{layer}": values.mean()}
        return losses


def outputs():
    final, last, first = (torch.full((4,), value, requires_grad=True) for value in (1.0, 2.0, 3.0))
    return {"values": final, "earlier": [], "initial": {"values": last, "earlier": [first]}}


def two_stage(gamma, scope="all"):
    return TwoStageCriterion(WEIGHTS, initial_loss_weight=gamma, initial_loss_scope=scope)


def total(losses, weights):
    return sum(losses[name] * weights[name] for name in weights)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("loss_ce", "loss_ce_initial"),
        ("loss_ce_3", "loss_ce_initial_3"),
        ("loss_l2_12", "loss_l2_initial_12"),
    ],
)
def test_stage_comes_before_the_layer(name, expected):
    assert stage_name(name, "initial") == expected


@pytest.mark.parametrize("gamma", [0.2, 0.5, 0.8])
def test_total_by_hand(gamma):
    judge = two_stage(gamma)
    losses = judge(CountingCriterion(), outputs(), None)
    # sums 4, 8, 12 and means 1, 2, 3 of the final, the initial and the earlier prediction
    expected = (4 + 20 * 1) + gamma * ((8 + 20 * 2) + (12 + 20 * 3))
    assert total(losses, judge.weight_dict).item() == pytest.approx(expected)
    assert list(losses) == [
        "loss_ce_final",
        "loss_mask_final",
        "loss_ce_initial",
        "loss_mask_initial",
        "loss_ce_initial_0",
        "loss_mask_initial_0",
    ]


def test_gamma_on_the_prediction_alone_leaves_earlier_layers_at_weight_1():
    judge = two_stage(0.2, "prediction")
    losses = judge(CountingCriterion(), outputs(), None)
    expected = (4 + 20) + 0.2 * (8 + 40) + (12 + 60)
    assert total(losses, judge.weight_dict).item() == pytest.approx(expected)


def test_gamma_0_asks_nothing_of_the_first_prediction():
    criterion, given, judge = CountingCriterion(), outputs(), two_stage(0.0)
    losses = judge(criterion, given, None)
    assert list(losses) == list(judge.weight_dict) == ["loss_ce_final", "loss_mask_final"]
    assert criterion.calls == 1
    total(losses, judge.weight_dict).backward()
    assert given["values"].grad.any()
    assert given["initial"]["values"].grad is None and given["initial"]["earlier"][0].grad is None


def test_gamma_0_on_the_prediction_alone_keeps_the_earlier_layers():
    given, judge = outputs(), two_stage(0.0, "prediction")
    losses = judge(CountingCriterion(), given, None)
    assert losses.keys() == {"loss_ce_final", "loss_mask_final", "loss_ce_initial_0", "loss_mask_initial_0"}
    total(losses, judge.weight_dict).backward()
    assert given["initial"]["values"].grad is None and given["initial"]["earlier"][0].grad.any()


def one_call(predictions, targets):
    """A criterion of any number of predictions, by what their losses' names end in."""
    losses = {}
    for suffix, values in predictions.items():
        losses |= {f"loss_ce{suffix}": values.sum(), f"loss_mask{suffix}": values.mean()}
    return losses


@pytest.mark.parametrize(
    "gamma, scope", [(0.5, "all"), (0.2, "prediction"), (0.0, "all"), (0.0, "prediction")]
)
def test_both_stages_in_one_call_have_the_same_losses_in_the_same_order(gamma, scope):
    judge, given, calls = two_stage(gamma, scope), outputs(), []

    def criterion(predictions, targets):
        calls.append(list(predictions))
        return one_call(predictions, targets)

    final, initial = {"": given["values"]}, {"": given["initial"]["values"]}
    initial |= {f"_{layer}": values for layer, values in enumerate(given["initial"]["earlier"])}
    together = judge.together(criterion, final, initial, None)
    apart = judge(CountingCriterion(), given, None)
    assert list(together.items()) == list(apart.items())
    wanted = {name.removeprefix("loss_ce") for name in judge.weight_dict if name.startswith("loss_ce")}
    assert len(calls) == 1 and set(calls[0]) == wanted


def test_one_call_refuses_a_loss_without_weight():
    def more(predictions, targets):
        return {**one_call(predictions, targets), "loss_box_final": torch.zeros(())}

    values = torch.ones(4)
    with pytest.raises(ValueError, match=r"without a weight: \['loss_box_final'\]"):
        two_stage(0.5).together(more, {"": values}, {"": values, "_0": values}, None)


def test_loss_without_weight_and_weight_without_loss_raise():
    def more(outputs, targets):
        return {**CountingCriterion()(outputs, targets), "loss_box": outputs["values"].sum()}

    def fewer(outputs, targets):
        losses = CountingCriterion()(outputs, targets)
        return {name: loss for name, loss in losses.items() if name != "loss_mask_0"}

    with pytest.raises(ValueError, match=r"without a weight: \['loss_box_final', 'loss_box_initial'\]"):
        two_stage(0.5)(more, outputs(), None)
    with pytest.raises(ValueError, match=r"weights without a loss: \['loss_mask_initial_0'\]"):
        two_stage(0.5)(fewer, outputs(), None)


def test_unknown_scope_lists_the_valid_ones():
    with pytest.raises(SettingError, match="INITIAL_LOSS_SCOPE is 'some'; use one of: all, prediction"):
        two_stage(0.5, "some")
