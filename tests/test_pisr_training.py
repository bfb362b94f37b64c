"""PISR in training: start at zero, gradients for all, half precision, compilation, the numbers it reports."""

import copy

import pytest
import torch

from pisr_maskformer import PISR, PISRSettings
from tests.pisr_data import (
    CHANNELS,
    CLASSES,
    QUERY_CHANNELS,
    REMOVED_BY_LAYER_NORM,
    THINGS,
    VARIANTS,
    build,
    prediction,
    relative_error,
    run,
)


def pisr_of(variant: str) -> PISR:
    return PISR(
        channels=CHANNELS,
        query_channels=QUERY_CHANNELS,
        num_classes=CLASSES,
        thing_ids=THINGS,
        settings=PISRSettings(**{"num_instances": 4, **VARIANTS[variant]}),
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_zero_initialised_outputs_change_nothing_bit_for_bit(variant):
    given = {name: value.float() for name, value in prediction().items()}
    module = pisr_of(variant)
    result = run(module, given)
    assert torch.equal(result.features.on_pixels(), given["features"])
    assert torch.equal(result.queries, given["queries"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_gets_a_gradient_at_once_and_a_nonzero_one_after_two_steps(variant):
    """At once, be it zero: what DDP asks for. Nonzero: what learning asks for (O_f, O_q start at zero)."""
    given = {name: value.float() for name, value in prediction().items()}
    module = pisr_of(variant)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    torch.manual_seed(0)
    for step in range(2):
        optimizer.zero_grad()
        result = run(module, given)
        outputs = [
            value for value in (result.features.on_pixels(), result.queries) if value.requires_grad
        ]  # the host's own where nothing is fed back
        sum((torch.randn_like(value) * value).sum() for value in outputs).backward()
        assert all(parameter.grad is not None for parameter in module.parameters()), step
        optimizer.step()
    can_learn = dict(module.named_parameters())
    if variant == "query":
        del can_learn[REMOVED_BY_LAYER_NORM]
    assert not [name for name, parameter in can_learn.items() if not parameter.grad.any()]


def test_first_prediction_receives_gradients_through_pisr():
    given = {name: value.requires_grad_() for name, value in prediction().items()}
    run(build().double(), given).features.on_pixels().sum().backward()
    assert given["mask_logits"].grad.any() and given["class_logits"].grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_autocast_with_large_features_stays_finite_and_close(variant, dtype):
    given = {name: value.float() for name, value in prediction(size=(6, 5)).items()}
    given["features"] *= 100
    module = build(**VARIANTS[variant])
    reference = run(module, given)
    with torch.autocast("cpu", dtype=dtype):
        # under autocast a host's features come in half precision
        half = {**given, "features": given["features"].to(dtype).requires_grad_()}
        result = run(module, half)
    assert result.features.on_pixels().dtype == dtype and result.queries.dtype == torch.float32
    (result.features.on_pixels().float().square().mean() + result.queries.square().mean()).backward()
    assert half["features"].grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())
    assert relative_error(result.features.on_pixels().float(), reference.features.on_pixels()) < (
        0.03 if dtype == torch.bfloat16 else 0.01
    )
    assert relative_error(result.queries, reference.queries) < 0.1


@pytest.mark.parametrize("variant", ["centred", "constant", "l2_l2"])
def test_compiles_without_a_graph_break(variant):
    module, given = build(**VARIANTS[variant]), {name: value.float() for name, value in prediction().items()}
    reference = run(module, given)
    statistics = {name: value.item() for name, value in module.last_statistics.items()}
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    result = run(compiled, given)
    torch.testing.assert_close(result.features.on_pixels(), reference.features.on_pixels())
    torch.testing.assert_close(result.queries, reference.queries)
    assert {name: value.item() for name, value in module.last_statistics.items()} == pytest.approx(statistics)


def test_module_can_be_copied_after_a_step():
    module = build().double()
    run(module, prediction()).features.on_pixels().sum().backward()
    assert copy.deepcopy(module).state_dict().keys() == module.state_dict().keys()


def test_statistics_tell_sizes_weights_and_deviation():
    module, given = build(num_instances=8).double(), prediction()
    result = run(module, given, internals=True)
    statistics = {name: value.item() for name, value in module.last_statistics.items()}
    weights = result.internals.weights.squeeze(-1)[result.internals.valid]
    groups = result.internals.panoptic_features.reshape(2, 32, -1)
    assert statistics == pytest.approx(
        {
            "pixel_residual": (
                (result.features.on_pixels() - given["features"]).norm() / given["features"].norm()
            ).item(),
            "query_residual": ((result.queries - given["queries"]).norm() / given["queries"].norm()).item(),
            "weight_mean": weights.mean().item(),
            "weight_min": weights.min().item(),
            "weight_max": weights.max().item(),
            "group_deviation": groups.std(-1, correction=0).mean().item(),
        }
    )
    assert not any(value.requires_grad for value in module.last_statistics.values())


def test_statistics_leave_padding_out():
    module, given = build().double(), prediction()
    valid = torch.ones(2, 1, 7, 6, dtype=torch.bool)
    valid[0, :, 4:] = False
    result = run(module, given, valid)
    inside = valid.expand_as(result.features.on_pixels())
    residual = (result.features.on_pixels() - given["features"])[inside].norm() / given["features"][
        inside
    ].norm()
    assert module.last_statistics["pixel_residual"].item() == pytest.approx(residual.item())
    before = {name: value.item() for name, value in module.last_statistics.items()}
    for name in ("features", "mask_logits"):
        given[name] = given[name].masked_fill(~valid, 100.0)
    run(module, given, valid)
    assert {name: value.item() for name, value in module.last_statistics.items()} == pytest.approx(before)


def test_statistics_belong_to_training_alone():
    module, given = build().double(), prediction()
    run(module, given)
    assert module.last_statistics
    module.last_statistics = {}
    run(module.eval(), given)
    assert module.last_statistics == {}
