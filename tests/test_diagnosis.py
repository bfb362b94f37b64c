"""What the diagnosis of a PISR model says of relations and features is what they are."""

import pytest
import torch
from torch import nn

from pisr_maskformer.hosts.maskformer import recorded_internals
from tests.tiny import image_only, sample
from tests.tiny_pisr import tiny_pisr, wake
from tools.evidence.diagnosis import Watch, as_it_was, participation, watched
from tools.evidence.probe import predictor_of

SEEDS = (1, 2, 3)


@torch.no_grad()
def look(model, height=64, width=96):
    """The numbers of three images, and PISR's internals of each."""
    with watched(predictor_of(model)) as watch, recorded_internals(model) as internals:
        for seed in SEEDS:
            model([image_only(sample(seed, height, width), height=height, width=width)])
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
    varies = (((every - every.mean(0)) ** 2).sum() / (every**2).sum()) ** 0.5
    assert numbers["relation varies"] == pytest.approx(float(varies), rel=1e-6)
    assert 0 < numbers["relation varies"] < 1
    energies = [torch.linalg.svdvals(relation[:, :-1].double()) ** 2 for relation in relations]
    of_images = [float(values.sum() ** 2 / (values**2).sum()) for values in energies]
    assert numbers["relation rank"] == pytest.approx(sum(of_images) / len(of_images), rel=1e-5)
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


@pytest.mark.parametrize(("height", "width"), [(64, 96), (66, 98)], ids=["whole", "padded"])
def test_the_feature_rank_is_that_of_all_pixels_but_padding(woken, height, width):
    features = []
    rows, columns = (
        (height + 1) // 4,
        (width + 1) // 4,
    )  # pixels of the mask features with their centre inside
    handle = predictor_of(woken).pisr.attention.register_forward_hook(
        lambda module, given, output: features.append(given[0][0, :, :rows, :columns].flatten(1).double())
    )
    numbers, _ = look(woken, height, width)
    handle.remove()
    values = torch.linalg.eigvalsh(torch.cov(torch.cat(features, 1)))
    assert numbers["feature rank"] == pytest.approx(float(values.sum() ** 2 / (values**2).sum()), rel=1e-4)


def test_a_new_model_changes_nothing_and_a_woken_one_does(woken):
    new, _ = look(tiny_pisr().eval())
    assert new["changed pixels"] == new["changed queries"] == 0
    assert look(woken)[0]["changed pixels"] > 0


def test_a_constant_relation_has_no_encodings_to_speak_of():
    numbers, _ = look(tiny_pisr({"MODEL.PISR.RELATION": "constant"}).eval())
    assert {"changed pixels", "unclaimed classes"} <= set(numbers)
    assert not {"relation varies", "encoding rank", "feature rank", "relation rank"} & set(numbers)


def test_claimed_and_changed_by_hand():
    """Three classes, two queries: the first two are claimed. Query 1 becomes "no object"; a pixel follows."""
    first = torch.tensor([[9.0, 0, 0, 0], [0, 9, 0, 0]])
    final = torch.tensor([[9.0, 0, 0, 0], [0, 0, 0, 9]])
    masks = torch.tensor([[[9.0, 9, -9]], [[-9, -9, 9]]])
    watch = Watch()
    watch.weights = torch.tensor([0.2, 0.4, 0.6])
    watch.predictions(
        {
            "pred_logits": final[None],
            "pred_masks": torch.tensor([[[9.0, 9, 9]], [[-9, -9, -9]]])[None],
            "initial": {"pred_logits": first[None], "pred_masks": masks[None]},
        }
    )
    numbers = watch.numbers()
    assert numbers["unclaimed classes"] == pytest.approx(1 / 3)
    assert numbers["unclaimed weight"] == pytest.approx(0.6 / 0.3)
    assert numbers["changed pixels"] == pytest.approx(1 / 3)
    assert numbers["changed queries"] == pytest.approx(1 / 2)


def test_the_model_is_as_it_was():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).eval()
    before = {name: entry.clone() for name, entry in model.state_dict().items()}
    with pytest.raises(ZeroDivisionError), as_it_was(model):
        model.train()
        model(torch.ones(4, 1, 3, 3)).sum().backward()
        assert not torch.equal(model[1].running_mean, before["1.running_mean"])
        raise ZeroDivisionError
    assert not model.training and all(p.grad is None for p in model.parameters())
    for name, entry in model.state_dict().items():
        assert torch.equal(entry, before[name])


def test_looking_leaves_no_hook_behind(woken):
    def hooks():
        return [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in woken.modules()]

    before = hooks()
    look(woken)
    assert hooks() == before
