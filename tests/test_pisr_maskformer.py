"""PISR on MaskFormer: warm start, equality with the baseline, both losses, the log, what is recorded."""

import pytest
import torch

import pisr_maskformer.hosts.maskformer as host
from mask_former.checkpoint import load_state
from mask_former.errors import InputError
from mask_former.optimizer import Clipping
from mask_former.predictor import TransformerPredictor
from mask_former.training.step import TrainingStep
from pisr_maskformer import PISRSettings
from tests.tiny import NUM_CLASSES, THINGS, tiny_model
from tests.tiny_pisr import BASELINE, batch, tiny_pisr, wake

PANOPTIC = {"MODEL.MASK_FORMER.TEST.PANOPTIC_ON": True}


def two_models(changes=None):
    """A baseline and a PISR model with its weights; the second one's report of what it was given."""
    baseline = tiny_pisr(path=BASELINE, seed=5)
    model = tiny_pisr(changes)
    report = load_state(model, baseline.state_dict(), "baseline")
    return baseline, model, report


def test_baseline_checkpoint_lacks_exactly_the_entries_of_pisr():
    _, model, report = two_models()
    own = {name for name in model.state_dict() if name.startswith("sem_seg_head.predictor.pisr.")}
    assert set(report.missing) == own and own
    assert not report.unexpected and not report.mismatched
    assert "criterion.empty_weight" in report.matched


@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
def test_final_prediction_of_a_warm_start_is_the_baselines_bit_for_bit(autocast):
    baseline, model, _ = two_models()
    images = baseline.preprocess(batch())
    with torch.no_grad(), torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
        expected = baseline.sem_seg_head(baseline.backbone(images.tensor), images.image_sizes)
        outputs = model.sem_seg_head(model.backbone(images.tensor), images.image_sizes)
    for name in ("pred_logits", "pred_masks"):
        assert torch.equal(outputs[name], expected[name])
        assert torch.equal(outputs["initial"][name], expected[name])


def test_results_and_loss_of_a_warm_start_are_the_baselines():
    baseline, model, _ = two_models(PANOPTIC)
    expected_losses, losses = baseline(batch()), model(batch())
    base_total = sum(expected_losses.values())
    last = sum(loss for name, loss in expected_losses.items() if not name[-1].isdigit())
    assert sum(losses.values()).item() == pytest.approx((last + 0.5 * base_total).item(), rel=1e-6)
    with torch.no_grad():
        expected, results = baseline.eval()(batch()), model.eval()(batch())
    for one, other in zip(results, expected, strict=True):
        assert torch.equal(one["sem_seg"], other["sem_seg"])


def test_total_is_recomputed_from_the_parts():
    model = tiny_pisr()
    wake(model)
    given = batch()
    losses = model(given)
    images = model.preprocess(given)
    outputs = model.sem_seg_head(model.backbone(images.tensor), images.image_sizes)
    targets = model.prepare_targets(given, images)
    baseline = tiny_pisr(path=BASELINE).criterion
    weights = {"loss_ce": 1.0, "loss_mask": 20.0, "loss_dice": 1.0}
    stages = []
    for predictions in (outputs, outputs["initial"], *outputs["initial"]["aux_outputs"]):
        alone = baseline({**predictions, "aux_outputs": []}, targets)  # a matching of its own
        stages.append(sum(weights[name] * loss for name, loss in alone.items()))
    final, *initial = stages
    assert len(initial) == 3  # decoder layers
    assert sum(losses.values()).item() == pytest.approx((final + 0.5 * sum(initial)).item(), rel=1e-5)
    assert {name for name in losses if "_initial" not in name} == {f"{name}_final" for name in weights}
    assert len(losses) == 3 * 4


def test_gamma_0_trains_no_earlier_layer_on_its_own():
    model = tiny_pisr({"MODEL.PISR.INITIAL_LOSS_WEIGHT": 0.0})
    losses = model(batch())
    assert losses.keys() == {"loss_ce_final", "loss_mask_final", "loss_dice_final"}
    assert not model.sem_seg_head.predictor.deep_supervision


def test_the_step_tells_pisrs_numbers():
    model = tiny_pisr()
    wake(model)
    step = TrainingStep(model, torch.optim.SGD(model.parameters(), lr=0.0), Clipping())
    logged = step(0, [batch()]).statistics
    statistics = model.sem_seg_head.predictor.pisr.last_statistics
    assert logged == {f"pisr/{name}": value.item() for name, value in statistics.items()}
    assert set(logged) == {
        f"pisr/{name}"
        for name in (
            "pixel_residual",
            "query_residual",
            "group_deviation",
            "weight_mean",
            "weight_min",
            "weight_max",
        )
    }
    assert logged["pisr/weight_min"] <= logged["pisr/weight_mean"] <= logged["pisr/weight_max"]
    assert all(value > 0 for value in logged.values())


def test_inference_stage_initial_is_the_base_network():
    model = tiny_pisr({**PANOPTIC, "MODEL.PISR.INFERENCE_STAGE": "initial"}).eval()
    final = tiny_pisr(PANOPTIC).eval()
    wake(model, std=1.0)
    final.load_state_dict(model.state_dict())
    baseline = tiny_pisr(PANOPTIC, path=BASELINE).eval()
    load_state(baseline, model.state_dict(), "pisr")
    with torch.no_grad():
        first, second, base = (other(batch()) for other in (model, final, baseline))
    assert torch.equal(first[1]["sem_seg"], base[1]["sem_seg"])
    assert not torch.allclose(second[1]["sem_seg"], base[1]["sem_seg"])


def test_internals_are_recorded_on_request():
    model = tiny_pisr().eval()
    with torch.no_grad(), host.recorded_internals(model) as internals:
        model(batch())
        model(batch()[:1])
    assert [record.encodings.shape for record in internals] == [
        (2, NUM_CLASSES + 50, 32),
        (1, NUM_CLASSES + 50, 32),
    ]
    assert internals[0].valid.sum(1).tolist() == [NUM_CLASSES + 10] * 2  # ten queries
    with torch.no_grad():
        model(batch())
    assert len(internals) == 2
    with pytest.raises(InputError, match="has no PISR"), host.recorded_internals(tiny_model()):
        pass


def test_a_model_without_things_trains_and_says_that_slots_stay_empty(monkeypatch):
    monkeypatch.setattr(host, "checked_thing_ids", lambda cfg: [])
    said = []
    monkeypatch.setattr(host.logger, "warning", lambda message, *values: said.append(message % values))
    model = tiny_pisr()
    assert said == ["no class is a thing: the 50 slots of MODEL.PISR.NUM_INSTANCES stay empty; 0 saves them"]
    sum(model(batch()).values()).backward()
    pisr = model.sem_seg_head.predictor.pisr
    assert all(parameter.grad is not None for parameter in pisr.parameters())


def test_valid_pixels_are_those_whose_centre_lies_in_the_image():
    features = torch.zeros(2, 1, 2, 3)  # stride 4: an 8×12 padded image, centres at 2, 6, 10
    assert host.valid_pixels([(8, 12), (7, 11)], features, 4) is None
    assert host.valid_pixels(None, features, 4) is None
    valid = host.valid_pixels([(8, 12), (6, 7)], features, 4)
    assert valid.shape == (2, 1, 2, 3) and valid[0].all()
    assert valid[1, 0].tolist() == [[True, True, False], [False, False, False]]


def predictor(**settings):
    torch.manual_seed(0)
    return host.PISRTransformerPredictor(
        16,
        thing_ids=THINGS,
        settings=PISRSettings(**settings),
        num_classes=NUM_CLASSES,
        hidden_dim=16,
        mask_dim=32,
        num_queries=6,
        num_heads=2,
        feedforward=16,
        decoder_layers=2,
        dropout=0.0,
    )


def test_widths_of_queries_and_mask_features_may_differ():
    memory, features = torch.randn(2, 16, 3, 4), torch.randn(2, 32, 6, 8)
    outputs = predictor()(memory, features)
    assert outputs["pred_masks"].shape == (2, 6, 6, 8) and outputs["pred_logits"].shape == (
        2,
        6,
        NUM_CLASSES + 1,
    )
    assert outputs["aux_outputs"] == [] and len(outputs["initial"]["aux_outputs"]) == 1
    assert isinstance(predictor(), TransformerPredictor)


def test_predictor_compiles_without_a_graph_break():
    torch._dynamo.reset()
    module, sizes = predictor(), [(24, 32), (20, 28)]
    memory, features = torch.randn(2, 16, 3, 4), torch.randn(2, 32, 6, 8)
    compiled = torch.compile(module, backend="eager", fullgraph=True)(memory, features, sizes)
    outputs = module(memory, features, sizes)
    torch.testing.assert_close(compiled["pred_masks"], outputs["pred_masks"])
    assert compiled["statistics"].keys() == outputs["statistics"].keys()


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("MODEL.PISR.F1", "dot", "F1 is 'dot'; use one of: matmul, cosine, l2"),
        ("MODEL.PISR.INFERENCE_STAGE", "both", "INFERENCE_STAGE is 'both'; use one of: final, initial"),
        (
            "MODEL.PISR.INITIAL_LOSS_SCOPE",
            "last",
            "INITIAL_LOSS_SCOPE is 'last'; use one of: all, prediction",
        ),
        ("MODEL.PISR.NUM_INSTANCES", -1, "NUM_INSTANCES is -1; it must not be negative"),
        ("MODEL.MASK_FORMER.CRITERION_NAME", "SetCriterion", "does not go with CRITERION_NAME SetCriterion"),
        ("MODEL.MASK_FORMER.PREDICTOR_NAME", "TransformerPredictor", "PREDICTOR_NAME TransformerPredictor"),
    ],
)
def test_wrong_settings_are_told_in_one_line(key, value, message):
    with pytest.raises(InputError, match=message) as caught:
        tiny_pisr({key: value})
    assert "\n" not in str(caught.value)
