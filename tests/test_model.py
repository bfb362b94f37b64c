"""The whole model, tiny: what it takes and returns, what depends on what, gradients, and that it learns.

Shapes: B batch · Q queries · C classes · Hp Wp padded image size.
"""

from typing import Any

import pytest
import torch
from torch import nn

from mask_former.errors import InputError
from mask_former.optimizer import build_optimizer
from tests.tiny import (
    DECODER_LAYERS,
    ENCODER,
    NUM_CLASSES,
    NUM_QUERIES,
    image_only,
    resnet,
    sample,
    tiny_config,
    tiny_model,
)

FORMS = {
    "plain": {},
    "encoder in the pixel decoder": ENCODER,
    "pre-norm": {**ENCODER, "MODEL.MASK_FORMER.PRE_NORM": True},
    "encoder before the query decoder": {"MODEL.MASK_FORMER.ENC_LAYERS": 1},
    "enforced projection": {**ENCODER, "MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ": True},
    "queries read res4": {"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "res4"},
    "no deep supervision": {"MODEL.MASK_FORMER.DEEP_SUPERVISION": False},
    "no norms in the pixel decoder": {"MODEL.SEM_SEG_HEAD.NORM": ""},
}

# The first decoder layer's self-attention sees a zero target: all queries have one value, so this matrix
# cannot matter. With pre-norm the zero meets the norm first: its weight cannot matter, its bias is the value.
NO_GRADIENT = "sem_seg_head.predictor.transformer.decoder.layers.0.self_attn.in_proj_weight"

NO_GRADIENT_PRE_NORM = "sem_seg_head.predictor.transformer.decoder.layers.0.norm1.weight"


forms = pytest.mark.parametrize("changes", FORMS.values(), ids=FORMS.keys())


def total(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(losses.values())).sum()


@torch.no_grad()
def predict(model: nn.Module, batch: list[dict[str, Any]]) -> dict[str, Any]:
    return model.sem_seg_head(model.backbone(model.preprocess(batch).tensor))


@forms
def test_training_gives_the_losses_that_have_weights(changes: dict[str, Any]) -> None:
    model = tiny_model(changes)
    losses = model([sample(0), sample(1, 48, 80)])
    layers = DECODER_LAYERS if changes.get("MODEL.MASK_FORMER.DEEP_SUPERVISION", True) else 1
    suffixes = ["", *(f"_{i}" for i in range(layers - 1))]
    assert losses.keys() == {
        f"{name}{suffix}" for name in ("loss_ce", "loss_mask", "loss_dice") for suffix in suffixes
    }
    assert losses.keys() == model.criterion.weight_dict.keys()
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())


@forms
def test_gradient_reaches_every_parameter_that_can_have_one(changes: dict[str, Any]) -> None:
    model = tiny_model(changes)
    with torch.no_grad():
        for parameter in model.parameters():  # biases that start at 0 hide gradients behind them
            parameter.add_(0.02 * torch.randn_like(parameter))
    total(model([sample(0), sample(1)])).backward()
    sizes = {name: parameter.grad.abs().max().item() for name, parameter in model.named_parameters()}
    expected = {NO_GRADIENT_PRE_NORM if changes.get("MODEL.MASK_FORMER.PRE_NORM") else NO_GRADIENT}
    assert {name for name, size in sizes.items() if size < 1e-7 * max(sizes.values())} == expected


def test_every_parameter_has_a_gradient_without_any_ground_truth() -> None:
    """Zeros in the mask branch: processes of a distributed run must agree on what has gradients."""
    model = tiny_model(ENCODER)
    losses = model([sample(0, segments=0), sample(1, segments=0)])
    assert all((loss > 0) == name.startswith("loss_ce") for name, loss in losses.items())
    total(losses).backward()
    assert all(
        parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters()
    )


def test_an_image_without_ground_truth_beside_one_with() -> None:
    model = tiny_model()
    losses, alone = model([sample(0), sample(1, segments=0)]), model([sample(0)])
    for name in ("loss_mask", "loss_dice"):
        assert losses[name].item() == pytest.approx(alone[name].item(), rel=1e-4)


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_resnets(depth: int) -> None:
    model = tiny_model(resnet(depth))
    losses = model([sample(segments=2)])
    assert all(loss.isfinite() for loss in losses.values())
    assert model.backbone.output_shape()["res5"].channels == (512 if depth < 50 else 2048)


@forms
def test_batched_is_single_where_the_padded_size_is_the_same(changes: dict[str, Any]) -> None:
    """Padding takes part in everything, as in the official model, so sizes that pad to the same 64×64."""
    model = tiny_model(changes).eval()
    batch = [image_only(sample(0, 64, 64)), image_only(sample(1, 50, 40)), image_only(sample(2, 33, 64))]
    batched = predict(model, batch)
    for i, one in enumerate(batch):
        single = predict(model, [one])
        for name in ("pred_logits", "pred_masks"):
            torch.testing.assert_close(batched[name][i], single[name][0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("divisibility", "padded"), [(32, (64, 96)), (0, (50, 70)), (48, (96, 96))])
def test_images_are_normalised_then_padded_with_zeros(divisibility: int, padded: tuple[int, int]) -> None:
    model = tiny_model({"MODEL.MASK_FORMER.SIZE_DIVISIBILITY": divisibility})
    batch = [image_only(sample(0, 50, 60)), image_only(sample(1, 40, 70))]
    images = model.preprocess(batch)
    assert images.tensor.shape == (2, 3, *padded)
    assert images.image_sizes == [(50, 60), (40, 70)]
    red = (float(batch[1]["image"][0, 5, 6]) - model.pixel_mean[0].item()) / model.pixel_std[0].item()
    assert images.tensor[1, 0, 5, 6].item() == pytest.approx(red)
    assert images.tensor[1, :, 40:].abs().max() == 0


def test_targets_are_padded_as_the_images_are() -> None:
    model = tiny_model()
    batch = [sample(0, 50, 60), sample(1, 64, 64, segments=0)]
    targets = model.prepare_targets(batch, model.preprocess(batch))
    assert [target["masks"].shape for target in targets] == [(3, 64, 64), (0, 64, 64)]
    assert torch.equal(targets[0]["masks"][:, :50, :60], batch[0]["instances"].gt_masks)
    assert targets[0]["masks"].sum() == 50 * 60
    assert torch.equal(targets[0]["labels"], batch[0]["instances"].gt_classes)


@torch.no_grad()
def test_uint8_and_float_images_are_the_same() -> None:
    model = tiny_model().eval()
    whole = sample()
    first = predict(model, [{"image": whole["image"]}])
    second = predict(model, [{"image": whole["image"].float()}])
    assert torch.equal(first["pred_logits"], second["pred_logits"])
    assert torch.equal(first["pred_masks"], second["pred_masks"])


def test_predictions_and_their_earlier_layers() -> None:
    model = tiny_model()
    outputs = predict(model, [image_only(sample(0)), image_only(sample(1))])
    assert len(outputs["aux_outputs"]) == DECODER_LAYERS - 1
    for layer in (outputs, *outputs["aux_outputs"]):
        assert layer["pred_logits"].shape == (2, NUM_QUERIES, NUM_CLASSES + 1)
        assert layer["pred_masks"].shape == (2, NUM_QUERIES, 16, 16)
    assert predict(model.eval(), [image_only(sample())])["aux_outputs"] == []


def test_input_projection_only_where_needed_or_enforced() -> None:
    projection = "sem_seg_head.predictor.input_proj.weight"
    assert tiny_model().state_dict()[projection].shape == (32, 40, 1, 1)
    assert projection not in tiny_model(ENCODER).state_dict()
    assert projection in tiny_model(FORMS["enforced projection"]).state_dict()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 7}, "has 5 classes; set it to 5"),
        (
            {"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "res7"},
            "there are res2, res3, res4, res5, transformer_enc",
        ),
        (
            {"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "transformer_encoder"},
            "TransformerEncoderPixelDecoder",
        ),
        ({"MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res9"]}, "the backbone gives: res2, res3, res4, res5"),
        ({"MODEL.SEM_SEG_HEAD.IN_FEATURES": []}, "the backbone gives: res2, res3, res4, res5"),
        (
            {"MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "FPN"},
            "PIXEL_DECODER_NAME: no 'FPN'; there are BasePixel",
        ),
        ({"MODEL.MASK_FORMER.PREDICTOR_NAME": "Oracle"}, "TransformerPredictor"),
        ({"MODEL.MASK_FORMER.CRITERION_NAME": "Oracle"}, "SetCriterion"),
        ({"DATASETS.TRAIN": ("nowhere",)}, "unknown data set 'nowhere'"),
        ({"DATASETS.TRAIN": ("coco_2017_train",)}, "coco_2017_train has boxes or instances only"),
    ],
)
def test_configurations_that_cannot_be_built(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as error:
        tiny_model(changes)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_no_data_set_is_needed() -> None:
    assert tiny_model({"DATASETS.TRAIN": ()}).thing_ids == frozenset()


@pytest.mark.parametrize("changes", [{}, ENCODER], ids=["plain", "encoder"])
def test_overfits_one_image(changes: dict[str, Any]) -> None:
    """Forty steps on one image bring the loss down by more than 70 %, and most labels are right."""
    learning = {"SOLVER.BASE_LR": 0.003, "SOLVER.BACKBONE_MULTIPLIER": 1.0}
    model = tiny_model({**changes, **learning})
    optimizer = build_optimizer(tiny_config({**changes, **learning}), model)
    batch = [sample(segments=2)]
    history = []
    for _ in range(40):
        loss = total(model(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.3 * history[0]
    with torch.no_grad():
        labels = model.eval()([image_only(batch[0])])[0]["sem_seg"].argmax(dim=0)
    instances = batch[0]["instances"]
    truth = (instances.gt_masks.long() * instances.gt_classes[:, None, None]).sum(dim=0)
    assert (labels == truth).float().mean() > 0.9
