"""What the diagnosis of a PISR model says of relations and features is what they are."""

import pytest
import torch

from pisr_maskformer.hosts.maskformer import recorded_internals
from tests.tiny import image_only, sample
from tests.tiny_pisr import tiny_pisr, wake
from tools.evidence.diagnosis import participation, watched
from tools.evidence.probe import predictor_of

SEEDS = (1, 2, 3)


@torch.no_grad()
def look(model):
    """The numbers of three images, and PISR's internals of each."""
    with watched(predictor_of(model)) as watch, recorded_internals(model) as internals:
        for seed in SEEDS:
            model([image_only(sample(seed, 64, 96), height=64, width=96)])
    return watch.numbers(), internals


@pytest.fixture(scope="module")
def woken():
    model = tiny_pisr().eval()
    wake(model, std=0.3)
    return model


def test_participation_counts_equal_directions():
    vector = torch.randn(5, generator=torch.Generator().manual_seed(0))
    assert participation(torch.eye(5)) == pytest.approx(5)
    assert participation(torch.outer(vector, vector)) == pytest.approx(1)
    assert participation(torch.diag(torch.tensor([2.0, 1.0]))) == pytest.approx(9 / 5)


def test_numbers_are_those_of_the_relations_and_encodings(woken):
    relations = []
    handle = predictor_of(woken).pisr.attention.register_forward_hook(
        lambda module, given, out: relations.append(torch.cat([out.matrix[0], out.offset[0][:, None]], 1))
    )
    numbers, internals = look(woken)
    handle.remove()
    every = torch.stack(relations).double()
    varies = ((every - every.mean(0)) ** 2).sum() / (every**2).sum()
    assert numbers["relation varies"] == pytest.approx(float(varies), rel=1e-6)
    assert 0 < numbers["relation varies"] < 1
    ranks = []
    for internal in internals:
        deviations = internal.encodings[0][internal.valid[0]]
        values = torch.linalg.svdvals(deviations - deviations.mean(0)).double() ** 2
        ranks.append(float(values.sum() ** 2 / (values**2).sum()))
    assert numbers["encoding rank"] == pytest.approx(sum(ranks) / len(ranks), rel=1e-4)


def test_a_relation_that_is_one_for_all_images_does_not_vary(woken):
    first = []

    def same(module, given, output):
        first.append(output)
        return first[0]

    handle = predictor_of(woken).pisr.attention.register_forward_hook(same)
    numbers, _ = look(woken)
    handle.remove()
    assert numbers["relation varies"] == pytest.approx(0, abs=1e-12)


def test_the_feature_rank_is_that_of_all_pixels_together(woken):
    features = []
    handle = predictor_of(woken).pisr.attention.register_forward_hook(
        lambda module, given, output: features.append(given[0][0].flatten(1).double())
    )
    numbers, _ = look(woken)
    handle.remove()
    values = torch.linalg.eigvalsh(torch.cov(torch.cat(features, 1)))
    assert numbers["feature rank"] == pytest.approx(float(values.sum() ** 2 / (values**2).sum()), rel=1e-4)


def test_a_new_model_changes_nothing_and_a_woken_one_does(woken):
    new, _ = look(tiny_pisr().eval())
    assert new["changed pixels"] == new["changed queries"] == 0
    assert look(woken)[0]["changed pixels"] > 0


def test_a_constant_relation_has_no_encodings_to_speak_of():
    numbers, _ = look(tiny_pisr({"MODEL.PISR.RELATION": "constant"}).eval())
    assert {"changed pixels", "absent encodings"} <= set(numbers)
    assert not {"relation varies", "encoding rank", "absent weight"} & set(numbers)


def test_looking_leaves_no_hook_behind(woken):
    before = [len(module._forward_hooks) for module in woken.modules()]
    look(woken)
    assert [len(module._forward_hooks) for module in woken.modules()] == before
