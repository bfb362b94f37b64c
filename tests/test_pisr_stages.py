"""The two stages' losses on MaskFormer: a matching each, and what gamma and its scope take away."""

import pytest
import torch

from tests.tiny import NUM_CLASSES, NUM_QUERIES
from tests.tiny_pisr import BASELINE, batch, tiny_pisr, wake

KINDS = {"loss_ce": 1.0, "loss_mask": 20.0, "loss_dice": 1.0}


def random_prediction(seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        "pred_logits": 2 * torch.randn(2, NUM_QUERIES, NUM_CLASSES + 1, generator=generator),
        "pred_masks": 3 * torch.randn(2, NUM_QUERIES, 24, 24, generator=generator),
    }


def test_every_stage_is_matched_and_judged_on_its_own(monkeypatch):
    model, calls = tiny_pisr(), []
    match = model.criterion.matcher.match

    def recording(predictions, targets):
        calls.append(match(predictions, targets))
        return calls[-1]

    monkeypatch.setattr(model.criterion.matcher, "match", recording)
    final, initial, *earlier = (random_prediction(seed) for seed in range(4))
    targets = model.prepare_targets(batch(), model.preprocess(batch()))
    first = {**initial, "aux_outputs": earlier}
    losses = model.criterion({**final, "aux_outputs": [], "initial": first, "statistics": {}}, targets)
    (matchings,) = calls
    matched = {tuple(queries.tolist()) for matching in matchings for queries, _ in matching[1:]}
    assert len(matchings) == len(matched) == 4  # no two predictions give the segments to the same queries

    alone = tiny_pisr(path=BASELINE).criterion
    stages = {"_final": final, "_initial": initial, "_initial_0": earlier[0], "_initial_1": earlier[1]}
    assert losses.keys() == {kind + stage for kind in KINDS for stage in stages}
    for stage, prediction in stages.items():
        expected = alone({**prediction, "aux_outputs": []}, targets)
        for kind in KINDS:
            torch.testing.assert_close(losses[kind + stage], expected[kind])


@pytest.mark.parametrize(
    "gamma, scope, weights",
    [
        (0.5, "all", {"_final": 1.0, "_initial": 0.5, "_initial_0": 0.5, "_initial_1": 0.5}),
        (0.5, "prediction", {"_final": 1.0, "_initial": 0.5, "_initial_0": 1.0, "_initial_1": 1.0}),
        (0.0, "prediction", {"_final": 1.0, "_initial_0": 1.0, "_initial_1": 1.0}),
        (0.0, "all", {"_final": 1.0}),
    ],
)
def test_gamma_and_its_scope_decide_which_predictions_have_losses_of_their_own(
    gamma, scope, weights, monkeypatch
):
    model = tiny_pisr({"MODEL.PISR.INITIAL_LOSS_WEIGHT": gamma, "MODEL.PISR.INITIAL_LOSS_SCOPE": scope})
    expected = {kind + stage: KINDS[kind] * factor for kind in KINDS for stage, factor in weights.items()}
    assert model.criterion.weight_dict == pytest.approx(expected)

    # O_f and O_q are still zero: nothing comes back through PISR, only from a prediction's own losses
    outputs = {}
    model.sem_seg_head.predictor.register_forward_hook(lambda *call: outputs.update(call[2]))
    matched, match = [], model.criterion.matcher.match

    def counting(predictions, targets):
        matched.append(len(predictions))
        return match(predictions, targets)

    monkeypatch.setattr(model.criterion.matcher, "match", counting)
    losses = model(batch())
    assert losses.keys() == expected.keys() and matched == [len(weights)]  # what has no loss is not matched
    predictions = {"_final": outputs, "_initial": outputs["initial"]}
    predictions |= {f"_initial_{i}": earlier for i, earlier in enumerate(outputs["initial"]["aux_outputs"])}
    for stage, prediction in predictions.items():
        tensors = [prediction["pred_logits"], prediction["pred_masks"]]
        gradients = torch.autograd.grad(
            sum(losses.values()), tensors, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        assert [bool(gradient.any()) for gradient in gradients] == [stage in weights] * 2, stage


def test_gamma_0_still_trains_the_first_prediction_through_the_final_one():
    model = tiny_pisr({"MODEL.PISR.INITIAL_LOSS_WEIGHT": 0.0})
    wake(model)
    outputs = {}
    model.sem_seg_head.predictor.register_forward_hook(lambda *call: outputs.update(call[2]))
    total = sum(model(batch()).values())
    for name in ("pred_logits", "pred_masks"):
        assert torch.autograd.grad(total, outputs["initial"][name], retain_graph=True)[0].any()


# The decoder's queries start at zero, so that the values of its first self-attention are the same at every
# query: what is attended to makes no difference there, and what is learned of it stays as it began.
ZERO_BY_MATHEMATICS = {"sem_seg_head.predictor.transformer.decoder.layers.0.self_attn.in_proj_weight"}


def test_after_two_steps_every_parameter_that_can_has_received_a_gradient():
    model = tiny_pisr()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):  # in the first step O_f and O_q, at zero, let nothing through to the rest of PISR
        optimizer.zero_grad()
        sum(model(batch()).values()).backward()
        largest = {name: parameter.grad.abs().max().item() for name, parameter in model.named_parameters()}
        optimizer.step()
    # the least of the others is a thousand times what rounding leaves of a zero
    assert {name for name, size in largest.items() if size < 1e-7} == ZERO_BY_MATHEMATICS
