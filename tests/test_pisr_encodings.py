"""Panoptic encodings: values counted by hand, what they must and must not depend on, edge cases."""

import pytest
import torch

from pisr_maskformer.config import SettingError
from pisr_maskformer.encodings import (
    PanopticEncoder,
    pool,
    pooled_semantic_encodings,
    semantic_encodings,
    semantic_heatmaps,
)

# Two pixels, two queries, two channels, two classes: class 0 is stuff, class 1 is a thing.
FEATURES = torch.tensor([[[[1.0, 3.0]], [[0.0, 4.0]]]])  # the pixels' vectors are (1, 0) and (3, 4)
MAPS = torch.tensor([[[[1.0, 0.0]], [[0.5, 0.5]]]])
PROBS = torch.tensor([[[0.75, 0.25], [0.0, 0.5]]])


def encoder(**options):
    chosen = {
        "num_classes": 2,
        "thing_ids": [1],
        "num_instances": 2,
        "suppression": "none",
        "slot_order": "query",
        "semantic_presence": False,
        "instance_presence": True,
    }
    return PanopticEncoder(**{**chosen, **options})


def encode(module, features=FEATURES, maps=MAPS, probs=PROBS):
    return module(features, maps, probs, module.gather(features, maps, probs))


def test_semantic_heatmaps_and_encodings_by_hand():
    # S_0 = 0.75 (1, 0) + 0; S_1 = 0.25 (1, 0) + 0.5 (0.5, 0.5)
    torch.testing.assert_close(semantic_heatmaps(MAPS, PROBS), torch.tensor([[[[0.75, 0.0]], [[0.5, 0.25]]]]))
    # E_1 = (0.5 (1, 0) + 0.25 (3, 4)) / 0.75
    expected = torch.tensor([[[1.0, 0.0], [5 / 3, 4 / 3]]])
    torch.testing.assert_close(semantic_encodings(FEATURES, MAPS, PROBS), expected)
    torch.testing.assert_close(pooled_semantic_encodings(pool(FEATURES, MAPS), PROBS), expected)


@pytest.mark.parametrize("direct", [False, True])
def test_instance_encodings_by_hand(direct):
    # Scores are P of class 1: 0.25 and 0.5. Query 0 covers (1, 0) alone, query 1 both pixels with mean (2,
    # 2).
    result = encode(encoder(direct=direct))
    torch.testing.assert_close(result.encodings[0, 2:], torch.tensor([[0.25, 0.0], [1.0, 1.0]]))
    assert result.kept.tolist() == [[0, 1]]
    by_score = encode(encoder(slot_order="score", direct=direct))
    torch.testing.assert_close(by_score.encodings[0, 2:], torch.tensor([[1.0, 1.0], [0.25, 0.0]]))
    assert by_score.kept.tolist() == [[1, 0]]


@pytest.mark.parametrize(
    "suppression, factors",
    [
        ("none", [1.0, 1.0]),
        # T = 0.25 (1, 0) + 0.5 (0.5, 0.5) = (0.5, 0.25), U = 0.75 (1, 0)
        ("soft", [0.4, 1.0]),
        ("binary", [0.0, 1.0]),
    ],
)
def test_background_suppression_by_hand(suppression, factors):
    module = encoder(suppression=suppression)
    _, kept = module.keep_instances(PROBS)
    expected = MAPS * torch.tensor(factors)
    torch.testing.assert_close(module.instance_heatmaps(MAPS, PROBS, kept), expected)
    second = (factors[0] * torch.tensor([1.0, 0.0]) + factors[1] * torch.tensor([3.0, 4.0])) / sum(factors)
    torch.testing.assert_close(encode(module).encodings[0, 3], 0.5 * second)


def test_presence_shortens_the_encoding_of_an_absent_class():
    plain = encode(encoder()).encodings
    weighed = encode(encoder(semantic_presence=True)).encodings
    torch.testing.assert_close(weighed[0, :2], plain[0, :2] * torch.tensor([[0.75], [0.5]]))
    torch.testing.assert_close(weighed[0, 2:], plain[0, 2:])


@pytest.mark.parametrize("direct", [False, True])
def test_without_presence_an_instance_is_the_plain_mean(direct):
    plain = encode(encoder(instance_presence=False, direct=direct)).encodings
    torch.testing.assert_close(plain[0, 2:], torch.tensor([[1.0, 0.0], [2.0, 2.0]]))
    torch.testing.assert_close(plain[0, :2], encode(encoder(direct=direct)).encodings[0, :2])


def test_slots_beyond_the_queries_are_zero_and_invalid():
    result = encode(encoder(num_instances=5))
    assert result.encodings.shape == (1, 7, 2)
    assert result.valid.tolist() == [[True] * 4 + [False] * 3]
    assert result.kept.tolist() == [[0, 1, -1, -1, -1]]
    assert not result.encodings[0, 4:].any()


def test_only_the_highest_scores_are_kept():
    result = encode(encoder(num_instances=1))
    assert result.kept.tolist() == [[1]]
    torch.testing.assert_close(result.encodings[0, 2], torch.tensor([1.0, 1.0]))


@pytest.mark.parametrize("suppression", ["none", "soft", "binary"])
@pytest.mark.parametrize("direct", [False, True])
def test_an_empty_map_gives_a_zero_encoding_and_a_finite_gradient(suppression, direct):
    logits = torch.tensor([[[[-1000.0, -1000.0]], [[0.0, 0.0]]]], requires_grad=True)
    probs = PROBS.clone().requires_grad_()
    result = encode(encoder(suppression=suppression, direct=direct), maps=logits.sigmoid(), probs=probs)
    assert not result.encodings[0, [0, 2]].any()  # class 0 and the first instance have no pixel
    result.encodings.sum().backward()
    assert logits.grad.isfinite().all() and probs.grad.isfinite().all()


def test_without_things_or_slots_there_are_no_instances():
    no_things = encode(encoder(thing_ids=[]))
    assert no_things.valid.tolist() == [[True, True, False, False]]
    assert no_things.kept.tolist() == [[-1, -1]] and not no_things.encodings[0, 2:].any()
    no_slots = encode(encoder(num_instances=0))
    assert no_slots.encodings.shape == (1, 2, 2) and no_slots.kept.shape == (1, 0)


def random_case(seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 4, 5, 6, generator=generator, dtype=torch.float64)
    maps = torch.rand(2, 6, 5, 6, generator=generator, dtype=torch.float64)
    probs = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64).softmax(-1)[..., :3]
    return features, maps, probs


def test_order_of_queries_does_not_matter_to_semantic_encodings():
    features, maps, probs = random_case()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    module = encoder(num_classes=3, thing_ids=[0, 2], num_instances=3, suppression="soft")
    plain, permuted = (
        encode(module, features, maps, probs),
        encode(module, features, maps[:, order], probs[:, order]),
    )
    torch.testing.assert_close(permuted.encodings[:, :3], plain.encodings[:, :3])
    assert not torch.allclose(
        permuted.encodings[:, 3:], plain.encodings[:, 3:]
    )  # slots follow the query index
    module = encoder(num_classes=3, thing_ids=[0, 2], num_instances=3, suppression="soft", slot_order="score")
    torch.testing.assert_close(
        encode(module, features, maps[:, order], probs[:, order]).encodings,
        encode(module, features, maps, probs).encodings,
    )


def test_swapping_things_and_stuff_changes_instances_only():
    case = random_case()
    options = {"num_classes": 3, "num_instances": 6, "suppression": "soft"}
    one, other = (encode(encoder(thing_ids=things, **options), *case).encodings for things in ([0], [1, 2]))
    assert torch.equal(one[:, :3], other[:, :3])
    assert not torch.isclose(one[:, 3:], other[:, 3:]).any()


def test_all_classes_things_is_no_suppression():
    features, maps, probs = random_case()
    results = [
        encode(encoder(num_classes=3, thing_ids=range(3), suppression=name), features, maps, probs).encodings
        for name in ("none", "soft", "binary")
    ]
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


@pytest.mark.parametrize(
    "option, valid", [("suppression", "none, soft, binary"), ("slot_order", "query, score")]
)
def test_unknown_names_list_the_valid_ones(option, valid):
    with pytest.raises(SettingError, match=f"MODEL.PISR.{option.upper()} is 'nonsense'; use one of: {valid}"):
        encoder(**{option: "nonsense"})


def test_thing_ids_outside_the_classes_are_refused():
    with pytest.raises(ValueError, match="0..1"):
        encoder(thing_ids=[2])
