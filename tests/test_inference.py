"""Results of hand-made predictions, rule by rule.

Images are 4×4. Classes: 0 sky and 1 road (stuff), 2 cat and 3 dog (things), "no object" last.
"""

import math

import pytest
import torch

from mask_former.inference import instance_inference, panoptic_inference, semantic_inference

SKY, ROAD, CAT, DOG = range(4)
NO_OBJECT = 4
THINGS = [CAT, DOG]


def logits(*queries: tuple[int, float]) -> torch.Tensor:
    """Each query's best class and its probability; the other classes share the rest."""
    rows = []
    for label, probability in queries:
        row = torch.full((5,), (1 - probability) / 4)
        row[label] = probability
        rows.append(row.log())
    return torch.stack(rows)


def masks(*queries: str, inside: float = 0.9, outside: float = 0.1) -> torch.Tensor:
    """Mask logits of four rows each, "x" inside, from probabilities."""
    probabilities = torch.tensor(
        [
            [[inside if pixel == "x" else outside for pixel in row] for row in query.split()]
            for query in queries
        ]
    )
    return probabilities.logit()


ALL = "xxxx xxxx xxxx xxxx"
TOP, BOTTOM = "xxxx xxxx .... ....", ".... .... xxxx xxxx"
LEFT, RIGHT = "xx.. xx.. xx.. xx..", "..xx ..xx ..xx ..xx"
NOTHING = ".... .... .... ...."


def panoptic(
    class_logits: torch.Tensor, mask_logits: torch.Tensor, threshold: float = 0.0, overlap: float = 0.0
) -> tuple[list[list[int]], list[tuple[int, int, bool]]]:
    """Id map, and (id, class, is a thing) of every segment."""
    ids, segments = panoptic_inference(class_logits, mask_logits, THINGS, threshold, overlap)
    assert ids.dtype == torch.int32
    return ids.tolist(), [(s["id"], s["category_id"], s["isthing"]) for s in segments]


def rows(*values: int) -> list[list[int]]:
    return [[value] * 4 for value in values]


def test_ids_count_from_one_in_the_order_of_queries() -> None:
    ids, segments = panoptic(logits((CAT, 0.6), (SKY, 0.9)), masks(BOTTOM, TOP))
    assert ids == rows(2, 2, 1, 1)
    assert segments == [(1, CAT, True), (2, SKY, False)]


def test_segment_keys() -> None:
    _, segments = panoptic_inference(logits((CAT, 0.9)), masks(ALL), THINGS, 0.0, 0.0)
    assert segments == [{"id": 1, "isthing": True, "category_id": CAT}]


@pytest.mark.parametrize(("threshold", "kept"), [(0.49, True), (0.5, False), (0.51, False)])
def test_a_query_must_score_above_the_threshold(threshold: float, kept: bool) -> None:
    half = torch.tensor([[0.0, 0.0, -math.inf, -math.inf, -math.inf]])  # exactly 1/2
    ids, segments = panoptic(half, masks(ALL), threshold=threshold)
    assert ids == rows(*[int(kept)] * 4)
    assert len(segments) == kept


def test_no_object_takes_no_pixel() -> None:
    ids, segments = panoptic(logits((NO_OBJECT, 0.9), (CAT, 0.3)), masks(ALL, TOP))
    assert segments == [(1, CAT, True)]
    assert ids == rows(1, 1, 1, 1)  # it is the only one left, so every pixel is its own


def test_a_pixel_goes_to_the_largest_score_times_mask() -> None:
    # on the left 0.5 · 0.9 > 0.9 · 0.1, on the right 0.9 · 0.9 is the largest
    ids, _ = panoptic(logits((CAT, 0.5), (DOG, 0.9)), masks(ALL, RIGHT))
    assert ids == [[1, 1, 2, 2]] * 4


@pytest.mark.parametrize(("overlap", "bottom"), [(0.5, 1), (0.51, 0)])
def test_a_mostly_hidden_query_is_dropped_and_leaves_void(overlap: float, bottom: int) -> None:
    """The cat's mask is the whole image, of which it wins the lower half: a share of exactly 1/2."""
    ids, segments = panoptic(logits((CAT, 0.6), (DOG, 0.9)), masks(ALL, TOP), overlap=overlap)
    dog = bottom + 1
    assert ids == rows(dog, dog, bottom, bottom)
    assert segments == ([(1, CAT, True)] if bottom else []) + [(dog, DOG, True)]


def test_a_query_that_won_nothing_is_dropped_at_any_threshold() -> None:
    ids, segments = panoptic(logits((CAT, 0.5), (DOG, 0.9)), masks(TOP, ALL))
    assert (ids, segments) == (rows(1, 1, 1, 1), [(1, DOG, True)])


def test_a_query_without_a_mask_of_its_own_is_dropped_and_leaves_void() -> None:
    """The sky nowhere reaches 1/2, though it wins the lower half: 0.9 · 0.4 > 0.9 · 0.1."""
    class_logits = logits((SKY, 0.9), (DOG, 0.9))
    mask_logits = torch.cat([masks(NOTHING, outside=0.4), masks(TOP)])
    ids, segments = panoptic(class_logits, mask_logits)
    assert (ids, segments) == (rows(1, 1, 0, 0), [(1, DOG, True)])


def test_a_mask_of_exactly_one_half_counts() -> None:
    _, segments = panoptic(logits((SKY, 0.9)), torch.zeros(1, 4, 4), overlap=1.0)
    assert segments == [(1, SKY, False)]


def test_stuff_of_one_class_is_one_segment_and_things_stay_apart() -> None:
    quarters = masks(
        "xxxx .... .... ....", ".... xxxx .... ....", ".... .... xxxx ....", ".... .... .... xxxx"
    )
    ids, segments = panoptic(logits((SKY, 0.9), (CAT, 0.9), (CAT, 0.9), (SKY, 0.9)), quarters)
    assert ids == rows(1, 2, 3, 1)
    assert segments == [(1, SKY, False), (2, CAT, True), (3, CAT, True)]


def test_different_stuff_does_not_merge() -> None:
    _, segments = panoptic(logits((SKY, 0.9), (ROAD, 0.9)), masks(TOP, BOTTOM))
    assert segments == [(1, SKY, False), (2, ROAD, False)]


def test_dropped_stuff_is_not_what_later_stuff_merges_with() -> None:
    """The first sky is hidden by the cat; the second one is a segment in its own right."""
    ids, segments = panoptic(
        logits((SKY, 0.5), (CAT, 0.9), (SKY, 0.9)), masks(TOP, TOP, BOTTOM), threshold=0.1, overlap=0.5
    )
    assert ids == rows(1, 1, 2, 2)
    assert segments == [(1, CAT, True), (2, SKY, False)]


@pytest.mark.parametrize("best", [(NO_OBJECT, 0.9), (CAT, 0.6)])
def test_nothing_kept(best: tuple[int, float]) -> None:
    assert panoptic(logits(best), masks(ALL), threshold=0.7) == (rows(0, 0, 0, 0), [])


def test_semantic_scores_are_summed_over_queries() -> None:
    """Σ_q P_qc · s_q; "no object" has no score."""
    scores = semantic_inference(logits((SKY, 0.8), (NO_OBJECT, 0.6)), masks(TOP, LEFT))
    assert scores.shape == (4, 4, 4)
    assert scores[SKY, 0, 0].item() == pytest.approx(0.8 * 0.9 + 0.1 * 0.9)
    assert scores[SKY, 3, 3].item() == pytest.approx(0.8 * 0.1 + 0.1 * 0.1)
    assert scores[CAT, 0, 3].item() == pytest.approx(0.05 * 0.9 + 0.1 * 0.1)


def test_instances_of_things_only() -> None:
    result = instance_inference(
        logits((CAT, 0.8), (SKY, 0.8), (DOG, 0.6)), masks(TOP, BOTTOM, LEFT), THINGS, 3
    )
    assert result.image_size == (4, 4)
    assert result.pred_classes.tolist() == [CAT, DOG]  # the sky took one of the three places
    assert result.pred_masks.dtype == torch.bool
    assert result.pred_masks[0].tolist() == [[True] * 4] * 2 + [[False] * 4] * 2


def test_instance_score_is_class_probability_times_the_mean_over_the_mask() -> None:
    mask_logits = torch.full((1, 4, 4), -3.0)
    mask_logits[0, 0, 0], mask_logits[0, 0, 1] = torch.tensor([0.6, 0.8]).logit()
    result = instance_inference(logits((CAT, 0.8)), mask_logits, THINGS, max_instances=1)
    assert result.scores.tolist() == pytest.approx([0.8 * 0.7])


def test_one_query_may_be_two_classes() -> None:
    """Pairs, not queries, compete: the best query's second class beats another query's first one."""
    two = torch.tensor([[0.01, 0.01, 0.5, 0.4, 0.08], [0.7, 0.06, 0.2, 0.02, 0.02]]).log()
    result = instance_inference(two, masks(TOP, BOTTOM), THINGS, max_instances=3)
    assert list(zip(result.pred_classes.tolist(), result.pred_masks[:, 0, 0].tolist(), strict=True)) == [
        (CAT, True),
        (DOG, True),
    ]
    assert result.scores.tolist() == pytest.approx([0.5 * 0.9, 0.4 * 0.9])


def test_no_object_is_no_instance_and_takes_no_place() -> None:
    result = instance_inference(
        logits((NO_OBJECT, 0.9), (CAT, 0.3)), masks(ALL, TOP), THINGS, max_instances=1
    )
    assert result.pred_classes.tolist() == [CAT]


def test_box_encloses_the_mask() -> None:
    result = instance_inference(logits((CAT, 0.8)), masks(".... .xx. .x.. ...."), THINGS, max_instances=1)
    assert result.pred_boxes.tensor.tolist() == [[1, 1, 3, 3]]


def test_an_empty_mask_is_no_instance() -> None:
    result = instance_inference(logits((CAT, 0.8), (DOG, 0.6)), masks(NOTHING, TOP), THINGS, max_instances=2)
    assert result.pred_classes.tolist() == [DOG]


@pytest.mark.parametrize(("things", "drawn"), [([], TOP), (THINGS, NOTHING)], ids=["no things", "no masks"])
def test_no_instance_at_all(things: list[int], drawn: str) -> None:
    result = instance_inference(logits((CAT, 0.8)), masks(drawn), things)
    assert (
        len(result) == 0 and result.pred_masks.shape == (0, 4, 4) and result.pred_boxes.tensor.shape == (0, 4)
    )
