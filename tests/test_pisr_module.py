"""PISR as a whole: what its output may depend on, what can be had from a forward, wrong settings."""

from dataclasses import fields

import pytest
import torch
from torch import nn

from pisr_maskformer import PISR, PISRSettings, SettingError
from pisr_maskformer.encodings import PanopticEncodings
from pisr_maskformer.feedback import MaskedGroupNorm
from pisr_maskformer.variants import VARIANTS as NAMES
from tests.pisr_data import CHANNELS, CLASSES, THINGS, VARIANTS, build, prediction, run


@pytest.mark.parametrize(
    "variant", ["default", "no_suppression", "centred", "constant", "l2_l2", "matmul_cosine"]
)
def test_batched_with_padding_is_single_without(variant):
    module = build(**VARIANTS[variant]).double().eval()
    small, large = prediction(batch=1, size=(5, 4), seed=1), prediction(batch=1, size=(7, 6), seed=2)
    padded = {name: value.clone() for name, value in large.items()}
    for name in ("features", "mask_logits"):
        padded[name][..., :5, :4] = small[name]  # what lies beyond is another image's: it must not leak
    padded |= {name: small[name] for name in ("class_logits", "queries")}
    both = {name: torch.cat([padded[name], large[name]]) for name in large}
    valid_pixels = torch.ones(2, 1, 7, 6, dtype=torch.bool)
    valid_pixels[0, :, 5:] = False
    valid_pixels[0, :, :, 4:] = False
    batched = run(module, both, valid_pixels)
    for index, given in enumerate((small, large)):
        alone = run(module, given)
        height, width = given["features"].shape[2:]
        torch.testing.assert_close(
            batched.features.on_pixels()[index, :, :height, :width], alone.features.on_pixels()[0]
        )
        torch.testing.assert_close(batched.queries[index], alone.queries[0])


def test_masked_norm_with_all_pixels_valid_is_the_plain_one():
    torch.manual_seed(0)
    norm, features = MaskedGroupNorm(4, 8, eps=1e-12), 3 + torch.randn(2, 8, 5, 4)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    everywhere = torch.ones(2, 1, 5, 4, dtype=torch.bool)
    torch.testing.assert_close(norm(features, everywhere), norm(features), rtol=1e-5, atol=1e-5)
    nowhere = norm(features, ~everywhere)
    assert nowhere.isfinite().all()


@pytest.mark.parametrize("slot_order", ["score", "query"])
def test_permuted_queries_permute_the_output_where_slots_go_by_score(slot_order):
    module, given = build(slot_order=slot_order).double(), prediction()
    order = torch.tensor([4, 1, 5, 0, 3, 2])
    permuted = {name: value if name == "features" else value[:, order] for name, value in given.items()}
    plain, other = run(module, given), run(module, permuted)
    same = torch.allclose(other.queries, plain.queries[:, order]) and torch.allclose(
        other.features.on_pixels(), plain.features.on_pixels()
    )
    assert same == (slot_order == "score")


def test_internals_cost_nothing_unasked(monkeypatch):
    def asked(*given):
        raise AssertionError("asked for")

    monkeypatch.setattr(PISR, "_internals", asked)
    module = build().double()
    for mode in (module.train(), module.eval()):
        assert run(mode, prediction()).internals is None
    with pytest.raises(AssertionError, match="asked for"):
        run(module, prediction(), internals=True)


@pytest.mark.parametrize("reweighting", ["implicit", "separate"])
def test_slots_without_a_query_stay_empty_whatever_the_biases(reweighting):
    module, given = build(num_instances=8, reweighting=reweighting).double(), prediction()
    internals = run(module, given, internals=True).internals
    assert internals.valid.sum(1).tolist() == [CLASSES + 6] * 2  # six queries in eight slots
    with torch.no_grad():
        revived, _ = module.reweighting(internals.encodings)
        assert revived[~internals.valid].all()  # what a bias makes of an encoding of zero
        reweighted = revived.clone()
        reweighted[:, CLASSES + 6 :] = 0
        expected = module.attention(given["features"], reweighted).on_pixels(given["features"])
        wrong = module.attention(given["features"], revived).on_pixels(given["features"])
    assert torch.equal(internals.reweighted, reweighted)
    torch.testing.assert_close(internals.panoptic_features, expected)
    assert not torch.allclose(wrong, expected)


def test_internals_are_what_the_forward_used():
    module, given = build(num_instances=8).double().eval(), prediction()
    internals = run(module, given, internals=True).internals
    batch, encodings, (height, width) = 2, CLASSES + 8, given["features"].shape[2:]
    shapes = {name: tuple(value.shape) for name, value in vars(internals).items()}
    assert shapes == {
        "encodings": (batch, encodings, CHANNELS),
        "valid": (batch, encodings),
        "kept": (batch, 8),
        "reweighted": (batch, encodings, CHANNELS),
        "weights": (batch, encodings, 1),
        "semantic_heatmaps": (batch, CLASSES, height, width),
        "instance_heatmaps": (batch, 8, height, width),
        "spatial_features": (batch, encodings, height, width),
        "panoptic_features": (batch, CHANNELS, height, width),
    }
    assert internals.valid.sum(1).tolist() == [CLASSES + 6] * 2  # six queries in eight slots
    assert (internals.kept[:, 6:] == -1).all() and not internals.instance_heatmaps[:, 6:].any()
    expected = internals.weights * internals.encodings
    torch.testing.assert_close(internals.reweighted[internals.valid], expected[internals.valid])
    assert not internals.reweighted[~internals.valid].any()


@pytest.mark.parametrize("reweighting", ["explicit", "implicit"])
def test_centred_encodings_have_the_mean_zero_over_the_filled_slots_alone(reweighting):
    given, settings = prediction(), {"num_instances": 8, "reweighting": reweighting}
    plain = run(build(**settings).double(), given, internals=True)
    other = run(build(**settings, centre_encodings=True).double(), given, internals=True)
    centred, filled = other.internals.reweighted, other.internals.valid
    torch.testing.assert_close(centred.sum(1), torch.zeros_like(centred[:, 0]))
    assert not centred[~filled].any() and centred[filled].any(1).all()
    differences = [value[:, :CLASSES].diff(dim=1) for value in (centred, plain.internals.reweighted)]
    torch.testing.assert_close(*differences)  # what tells encodings apart is left
    assert not torch.allclose(other.features.on_pixels(), plain.features.on_pixels())


def test_internals_of_the_control_have_encodings_but_no_relation():
    internals = run(build(relation="constant").double(), prediction(), internals=True).internals
    reference = run(build().double(), prediction(), internals=True).internals
    assert torch.equal(internals.encodings, reference.encodings)
    assert internals.weights is None and internals.reweighted is None and internals.spatial_features is None


def test_hook_on_the_encoder_replaces_the_encodings():
    module, given = build().double().eval(), prediction()
    plain = run(module, given, internals=True)
    with_others = module.encoder.register_forward_hook(
        lambda encoder, inputs, encoded: PanopticEncodings(*(value.flip(0) for value in encoded))
    )
    swapped = run(module, given, internals=True)
    with_others.remove()
    assert torch.equal(swapped.internals.kept, plain.internals.kept.flip(0))
    assert torch.equal(swapped.internals.encodings, plain.internals.encodings.flip(0))
    assert not torch.allclose(swapped.features.on_pixels(), plain.features.on_pixels())


def test_heatmaps_are_those_of_the_kept_queries_also_behind_a_hook():
    module, given = build(suppression="none").double().eval(), prediction()
    maps = given["mask_logits"].sigmoid()
    other = torch.tensor([[5, 2, 0, -1], [1, 3, 4, 5]])
    hook = module.encoder.register_forward_hook(lambda encoder, inputs, encoded: encoded._replace(kept=other))
    internals = run(module, given, internals=True).internals
    hook.remove()
    assert torch.equal(internals.kept, other)
    expected = torch.stack([image[kept] for image, kept in zip(maps, other, strict=True)])
    expected[0, 3] = 0
    torch.testing.assert_close(internals.instance_heatmaps, expected)


def test_host_without_queries():
    module = PISR(
        channels=CHANNELS,
        query_channels=None,
        num_classes=CLASSES,
        thing_ids=THINGS,
        settings=PISRSettings(feedback="pixel"),
    ).double()
    given = {**prediction(), "queries": None}
    assert run(module, given).queries is None
    with pytest.raises(SettingError, match="FEEDBACK is 'both'"):
        PISR(channels=CHANNELS, query_channels=None, num_classes=CLASSES, thing_ids=THINGS)
    with pytest.raises(ValueError, match="queries"):
        run(build().double(), given)


@pytest.mark.parametrize(
    "name, valid",
    [
        ("reweighting", "explicit, implicit, separate, none"),
        ("relation", "attention, constant"),
        ("feedback", "pixel, query, both, none"),
        ("f1", "matmul, cosine, l2"),
        ("f2", "matmul, cosine, l2"),
        ("suppression", "none, soft, binary"),
        ("slot_order", "query, score"),
        ("initial_loss_scope", "all, prediction"),
        ("inference_stage", "final, initial"),
    ],
)
@pytest.mark.parametrize("relation", ["attention", "constant"])
def test_unknown_variants_list_the_valid_ones(relation, name, valid):
    """Also those that nothing will use: the control has neither f1 nor a reweighting."""
    with pytest.raises(SettingError, match=f"MODEL.PISR.{name.upper()} is 'x'; use one of: {valid}$"):
        build(**{"relation": relation, name: "x"})


def test_every_setting_that_is_a_name_is_checked():
    assert NAMES.keys() == {field.name for field in fields(PISRSettings) if field.type is str}


@pytest.mark.parametrize(
    "name", ["num_instances", "reweighting_layers", "constant_rank", "initial_loss_weight"]
)
def test_negative_numbers_are_refused(name):
    with pytest.raises(SettingError, match=f"{name.upper()} is -1; it must not be negative"):
        PISRSettings(**{name: -1})


@pytest.mark.parametrize("things, slots", [([], 4), ([0], 0)])
def test_a_single_encoding_is_not_centred(things, slots):
    build(classes=1, things=[0], num_instances=1, centre_encodings=True)
    with pytest.raises(SettingError, match="CENTRE_ENCODINGS is True; a single encoding"):
        build(classes=1, things=things, num_instances=slots, centre_encodings=True)
