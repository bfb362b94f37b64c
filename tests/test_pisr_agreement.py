"""The fast evaluation (pooled encodings, associative attention) against the definition, with gradients."""

import random

import pytest
import torch

from tests.pisr_data import REMOVED_BY_LAYER_NORM, THINGS, build, prediction, relative_error, run

AFFINE = [
    {
        "suppression": suppression,
        "slot_order": order,
        "semantic_presence": suppression == "none",
        "instance_presence": suppression != "binary",
        "centre_encodings": centred,
        "feedback": feedback,
    }
    for suppression, order, feedback, centred in (
        ("soft", "query", "both", False),
        ("none", "score", "both", True),
        ("binary", "query", "both", False),
        ("soft", "query", "query", False),
        ("soft", "score", "pixel", False),
        ("soft", "query", "pixel", True),
    )
]
SHAPES = {
    "usual": {},
    "fewer_queries_than_slots": {"queries": 3},
    "batch_of_one": {"batch": 1, "size": (9, 4)},
    "one_class": {"classes": 1},
    "many_queries": {"queries": 20, "size": (12, 10)},
}


def relations(module, given, valid_pixels):
    """What the fast evaluation changes: all up to F_pan and its means under the maps, before the norms."""
    probs = given["class_logits"].softmax(-1)[..., :-1]
    first = module.first_prediction(given["features"], given["mask_logits"].sigmoid(), probs, valid_pixels)
    related = module.relate(first)
    return {
        "E_pan": related.encoded.encodings,
        "E~": related.reweighted,
        "F_pan": related.panoptic.on_pixels(first.features),
        "p": related.panoptic.under_maps(first.gathered.pooled, first.region_maps, valid_pixels),
    }


def predictions(module, given, valid_pixels):
    """What the second prediction is made of."""
    result = run(module, given, valid_pixels)
    return {"F'": result.features.on_pixels(), "q'": result.queries}


def with_gradients(evaluate, module, given, valid_pixels):
    """The values of `evaluate` by name, and the gradients of the sum of their squares."""
    given = {name: value.clone().requires_grad_() for name, value in given.items()}
    values = evaluate(module, given, valid_pixels)
    sum(value.square().sum() for value in values.values()).backward()
    leaves = {**given, **dict(module.named_parameters())}
    gradients = {f"gradient of {name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    return values, gradients


def errors(given, valid_pixels, evaluate, **options):
    """Relative error of the fast evaluation's values and of its gradients, by name."""
    results = []
    for direct in (False, True):
        module = build(**options, direct=direct).to(given["features"].dtype)
        results.append(with_gradients(evaluate, module, given, valid_pixels))
    (values, gradients), (true_values, true_gradients) = results
    assert gradients.keys() == true_gradients.keys()
    return (
        {name: relative_error(values[name], true_values[name]) for name in values},
        {name: relative_error(gradients[name], true_gradients[name]) for name in gradients},
    )


def case(shape, dtype):
    """A first prediction with an all-zero map, what its variants need to know, and a padded bottom."""
    given = {name: value.to(dtype) for name, value in prediction(**shape).items()}
    given["mask_logits"][0, 0] = -2000
    batch, _, height, width = given["features"].shape
    valid_pixels = torch.ones(batch, 1, height, width, dtype=torch.bool)
    valid_pixels[0, :, height - 2 :] = False
    classes = given["class_logits"].shape[2] - 1
    things = [thing for thing in THINGS if thing < classes] or [0]
    return given, valid_pixels, {"classes": classes, "things": things}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", AFFINE, ids=lambda options: "-".join(map(str, options.values())))
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_fast_evaluation_is_the_definition(dtype, tolerance, options, shape):
    given, padding, classes = case(SHAPES[shape], dtype)
    for valid_pixels in (None, padding):
        found, gradients = errors(given, valid_pixels, relations, **classes, **options)
        assert not {name: error for name, error in (found | gradients).items() if error > tolerance}
        # Behind the norms float32's rounding is magnified in gradients, in both evaluations alike.
        found, gradients = errors(given, valid_pixels, predictions, **classes, **options)
        if options["feedback"] == "query":
            del gradients[f"gradient of {REMOVED_BY_LAYER_NORM}"]
        assert not {name: error for name, error in found.items() if error > tolerance}
        limit = tolerance if dtype == torch.float64 else 1e-3
        assert not {name: error for name, error in gradients.items() if error > limit}


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_fast_evaluation_is_the_definition_where_every_map_is_empty(dtype, tolerance):
    given = {name: value.to(dtype) for name, value in prediction().items()}
    given["mask_logits"][0] = -2000
    found, gradients = errors(given, None, relations)
    assert not {name: error for name, error in (found | gradients).items() if error > tolerance}


def random_shape(seed):
    """Sizes of a first prediction, anything small."""
    draw = random.Random(seed).randint
    return {
        "batch": draw(1, 4),
        "queries": draw(2, 24),
        "size": (draw(3, 14), draw(1, 14)),
        "classes": draw(2, 12),
    }


@pytest.mark.parametrize("options", AFFINE, ids=lambda options: "-".join(map(str, options.values())))
@pytest.mark.parametrize("seed", range(12))
def test_fast_evaluation_is_the_definition_on_random_shapes(seed, options):
    """In float64; in float32 as near to that truth as asked for, or as the definition itself in float32 is.

    There a sum over few pixels that nearly cancels is rounded by more than 1e-5 of what is left, either way.
    """
    given, padding, classes = case(random_shape(seed), torch.float32)
    exact = {name: value.double() for name, value in given.items()}
    for valid_pixels in (None, padding):
        for evaluate in (relations, predictions):
            found, gradients = errors(exact, valid_pixels, evaluate, **classes, **options)
            if evaluate is predictions and options["feedback"] == "query":
                del gradients[f"gradient of {REMOVED_BY_LAYER_NORM}"]
            assert not {name: error for name, error in (found | gradients).items() if error > 1e-10}
        truth, fast, definition = (
            with_gradients(
                relations, build(**classes, **options, direct=direct).to(dtype), values, valid_pixels
            )
            for dtype, direct, values in (
                (torch.float64, True, exact),
                (torch.float32, False, given),
                (torch.float32, True, given),
            )
        )
        for kind in range(2):  # values, gradients
            for name, true in truth[kind].items():
                limit = max(1e-5, 3 * relative_error(definition[kind][name].double(), true))
                assert relative_error(fast[kind][name].double(), true) < limit, name
