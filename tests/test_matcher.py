"""The assignment: least total cost, every count of targets, ties, and costs that are not numbers."""

import math

import pytest
import torch

from mask_former import matcher as matcher_module
from mask_former import matching_costs
from mask_former.losses import dice_cost, focal_cost
from mask_former.matcher import HungarianMatcher, Target, assign
from mask_former.matching_costs import resize_nearest
from tools.benchmarks.measure import peak_memory
from tools.benchmarks.plain_criterion import plain_cost, plain_match


def target(labels: list[int], masks: torch.Tensor) -> Target:
    return {"labels": torch.tensor(labels, dtype=torch.int64), "masks": masks.bool()}


def one_image(logits: torch.Tensor, masks: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"pred_logits": logits[None], "pred_masks": masks[None]}


def cost_of(
    matcher: HungarianMatcher, logits: torch.Tensor, masks: torch.Tensor, true: Target
) -> torch.Tensor:
    """Cost of the pairs of one image."""
    return matcher.costs([one_image(logits, masks)], [true])[0][0]


def step_of(
    counts: list[int], predictions: int = 3, queries: int = 6, side: int = 8, scale: float = 3.0
) -> tuple[list[dict[str, torch.Tensor]], list[Target]]:
    """Several predictions of several images, with `counts` targets."""
    generator = torch.Generator().manual_seed(0)
    given = [
        {
            "pred_logits": scale * torch.randn(len(counts), queries, 5, generator=generator),
            "pred_masks": scale * torch.randn(len(counts), queries, side, side, generator=generator),
        }
        for _ in range(predictions)
    ]
    targets = []
    for count in counts:
        labels = torch.randint(4, (count,), generator=generator).tolist()
        targets.append(target(labels, torch.rand(count, 4 * side, 4 * side, generator=generator) > 0.5))
    return given, targets


def test_least_total_cost_is_not_greedy() -> None:
    # greedy would give query 1 its 0 (segment 1) and pay 4 + 2: the best sum is 1 + 2 + 2
    queries, segments = assign(torch.tensor([[4.0, 1.0, 3.0], [2.0, 0.0, 5.0], [3.0, 2.0, 2.0]]))
    assert (queries.tolist(), segments.tolist()) == ([0, 1, 2], [1, 0, 2])
    assert queries.dtype == segments.dtype == torch.int64


@pytest.mark.parametrize(("queries", "targets", "pairs"), [(4, 2, 2), (2, 4, 2), (3, 0, 0), (3, 3, 3)])
def test_as_many_pairs_as_the_scarcer_side_has(queries: int, targets: int, pairs: int) -> None:
    rows, columns = assign(torch.rand(queries, targets, generator=torch.Generator().manual_seed(1)))
    assert len(rows) == len(columns) == pairs
    assert len(set(rows.tolist())) == len(set(columns.tolist())) == pairs  # nobody twice
    assert rows.tolist() == sorted(rows.tolist())


def test_more_targets_than_queries_drops_the_dearest() -> None:
    queries, segments = assign(torch.tensor([[5.0, 1.0, 2.0]]))
    assert (queries.tolist(), segments.tolist()) == ([0], [1])


def test_ties_are_broken_the_same_way_every_time() -> None:
    first = assign(torch.zeros(4, 3))
    assert sorted(first[1].tolist()) == [0, 1, 2]
    assert [x.tolist() for x in assign(torch.zeros(4, 3))] == [x.tolist() for x in first]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_costs_that_are_not_finite_are_reported(value: float) -> None:
    cost = torch.zeros(2, 2)
    cost[0, 1] = value
    with pytest.raises(FloatingPointError, match="1 of 4 costs of image 3"):
        assign(cost, image=3)


def test_diverged_predictions_name_their_image() -> None:
    prediction = {"pred_logits": torch.zeros(2, 3, 4), "pred_masks": torch.zeros(2, 3, 2, 2)}
    prediction["pred_masks"][1, 0] = math.nan
    targets = [target([0], torch.ones(1, 4, 4)), target([0], torch.ones(1, 4, 4))]
    with pytest.raises(FloatingPointError, match="image 1"):
        HungarianMatcher()(prediction, targets)


def test_cost_by_hand() -> None:
    """A query of probabilities 1/2, 1/4, 1/4 and undecided mask, a target of class 1 that covers half."""
    logits, masks = torch.tensor([[math.log(2), 0.0, 0.0]]), torch.zeros(1, 1, 2)
    true = target([1], torch.tensor([[[1, 0]]]))
    focal = (0.25 + 0.75) / 2 * (1 / 2) ** 2 * math.log(2)
    dice = 1 - (2 * 1 / 2 + 1) / (1 + 1 + 1)
    matcher = HungarianMatcher(class_weight=3.0, mask_weight=20.0, dice_weight=2.0)
    cost = cost_of(matcher, logits, masks, true)
    assert cost.tolist() == [[pytest.approx(3 * -1 / 4 + 20 * focal + 2 * dice)]]


@pytest.mark.parametrize(
    ("weights", "segment"), [((1, 0, 0), 0), ((0, 1, 0), 1), ((0, 0, 1), 1)], ids=["class", "focal", "dice"]
)
def test_each_part_of_the_cost_counts(weights: tuple[float, float, float], segment: int) -> None:
    """The one query has the class of segment 0 and the mask of segment 1."""
    halves = torch.tensor([[[1, 1, 0, 0]], [[0, 0, 1, 1]]])
    logits, masks = torch.tensor([[5.0, 0.0, 0.0]]), (halves[1:] * 10.0 - 5.0)
    pairs = HungarianMatcher(*weights)(one_image(logits, masks), [target([0, 1], halves)])
    assert pairs[0][1].tolist() == [segment]


def test_ground_truth_is_compared_at_the_predictions_size() -> None:
    true = torch.zeros(1, 4, 4)
    true[0, 0, 2] = 1  # nearest neighbour takes rows 0, 2 and columns 0, 2
    true[0, 1, 1] = 1
    assert resize_nearest(true.bool(), (2, 2)).tolist() == [[[0.0, 1.0], [0.0, 0.0]]]
    masks = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(0))
    small = torch.tensor([[0.0, 1.0, 0.0, 0.0]])
    expected = 20 * focal_cost(masks.flatten(1), small) + dice_cost(masks.flatten(1), small)
    cost = cost_of(HungarianMatcher(class_weight=0.0), torch.zeros(3, 3), masks, target([0], true))
    torch.testing.assert_close(cost, expected)


@pytest.mark.parametrize("extreme", [20.0, 90.0, 120.0, 1e4], ids=str)
def test_costs_of_very_sure_predictions_are_exact(extreme: float) -> None:
    """σ(x) is no normal number below −87, and 0 below −104. What two large numbers leave is rounded."""
    masks = torch.tensor([[[-extreme, extreme, -1.0, 2.0]], [[extreme, -extreme, 0.0, -0.5]]])
    true = torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    cost = cost_of(HungarianMatcher(0.0, 20.0, 1.0), torch.zeros(2, 3), masks, target([0], true[:, None]))
    rows = masks.flatten(1).double()
    expected = 20 * focal_cost(rows, true.double()) + dice_cost(rows, true.double())
    torch.testing.assert_close(cost, expected.float(), rtol=1e-5, atol=1e-6 * extreme)


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_any_number_of_threads_gives_the_same_costs(threads: int) -> None:
    predictions, targets = step_of([3], predictions=1)  # of 64 pixels
    expected = plain_cost(
        HungarianMatcher(), predictions[0]["pred_logits"][0], predictions[0]["pred_masks"][0], targets[0]
    )
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        cost = HungarianMatcher().costs(predictions, targets)[0][0]
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(cost, expected, rtol=1e-5, atol=1e-6)


def test_a_query_that_is_not_finite_leaves_the_others_their_costs() -> None:
    masks = torch.tensor([[[math.nan, 1.0]], [[-1e4, 1.0]], [[1.0, 2.0]]])
    true = target([0], torch.tensor([[[1, 0]]]))
    cost = cost_of(HungarianMatcher(), torch.zeros(3, 3), masks, true)
    assert cost.isfinite().flatten().tolist() == [False, True, True]


def test_images_with_and_without_targets_in_one_batch() -> None:
    prediction = {"pred_logits": torch.zeros(2, 3, 3), "pred_masks": torch.zeros(2, 3, 2, 2)}
    empty, full = HungarianMatcher()(
        prediction, [target([], torch.zeros(0, 4, 4)), target([1], torch.ones(1, 4, 4))]
    )
    assert [len(x) for x in (*empty, *full)] == [0, 0, 1, 1]
    assert empty[0].dtype == empty[1].dtype == torch.int64


def test_matching_takes_no_part_in_the_gradient() -> None:
    logits, masks = torch.zeros(2, 3, requires_grad=True), torch.zeros(2, 2, 2, requires_grad=True)
    HungarianMatcher()(one_image(logits, masks), [target([0], torch.ones(1, 2, 2))])
    assert logits.grad is None and masks.grad is None


def test_half_precision_predictions_match_in_float32() -> None:
    masks = torch.full((1, 64, 64), 20.0)  # 64·64·20 would overflow float16
    true = target([0], torch.zeros(1, 64, 64))
    cost = cost_of(HungarianMatcher(), torch.zeros(1, 3).half(), masks.half(), true)
    assert cost.dtype == torch.float32
    torch.testing.assert_close(cost, cost_of(HungarianMatcher(), torch.zeros(1, 3), masks, true))


def test_weights_that_are_all_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="all 0"):
        HungarianMatcher(0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("pixels", "in_cache", "targets_at_once"),
    [(1, 1, 1), (150, 70, 2), (2**19, 140, 128), (2**19, 2**17, 128)],
)
def test_costs_are_the_plain_ones_of_every_prediction_and_image(
    monkeypatch: pytest.MonkeyPatch, pixels: int, in_cache: int, targets_at_once: int
) -> None:
    """Whatever is done at a time; images of no target, of some, and of more than there are queries.

    Predictions of different numbers of queries, so that last parts are shorter; also of none.
    """
    monkeypatch.setitem(matching_costs.PIXELS_AT_ONCE, "cpu", pixels)
    monkeypatch.setitem(matching_costs.PIXELS_IN_CACHE, "cpu", in_cache)
    monkeypatch.setattr(matching_costs, "TARGETS_AT_ONCE", targets_at_once)
    matcher = HungarianMatcher(1.0, 20.0, 2.0)
    predictions, targets = step_of([3, 0, 9], predictions=4, queries=7)
    for prediction, queries in zip(predictions, (5, 7, 1, 0), strict=True):
        prediction.update({name: values[:, :queries] for name, values in prediction.items()})
    for prediction, costs in zip(predictions, matcher.costs(predictions, targets), strict=True):
        for image, (cost, true) in enumerate(zip(costs, targets, strict=True)):
            expected = plain_cost(
                matcher, prediction["pred_logits"][image], prediction["pred_masks"][image], true
            )
            torch.testing.assert_close(cost, expected, rtol=1e-5, atol=1e-6)
    for found, wanted in zip(
        matcher.match(predictions, targets), plain_match(matcher, predictions, targets), strict=True
    ):
        for (queries, segments), (their_queries, their_segments) in zip(found, wanted, strict=True):
            assert torch.equal(queries, their_queries) and torch.equal(segments, their_segments)


@pytest.mark.parametrize("value", [60.0, -60.0, 300.0, -300.0, 65504.0, -65504.0])
def test_costs_of_certain_pixels_are_the_plain_ones(value: float) -> None:
    matcher, masks = HungarianMatcher(), torch.full((1, 2, 2), value)
    true = target([0, 0], torch.tensor([[[1, 0], [1, 1]], [[0, 0], [1, 0]]]))
    expected = plain_cost(matcher, torch.zeros(1, 3), masks, true)
    torch.testing.assert_close(cost_of(matcher, torch.zeros(1, 3), masks, true), expected)


def test_all_costs_of_a_step_come_in_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    copies = []
    whole = matcher_module.to_host
    monkeypatch.setattr(matcher_module, "to_host", lambda costs: copies.append(costs.numel()) or whole(costs))
    predictions, targets = step_of([3, 0, 9])
    HungarianMatcher().match(predictions, targets)
    assert copies == [3 * 6 * (3 + 0 + 9)]


def test_memory_does_not_grow_with_the_number_of_targets() -> None:
    """But by the costs themselves, and the indices."""
    peaks = {}
    for count in (256, 1000):  # two blocks of them and more
        predictions, targets = step_of([count], predictions=1, side=32)
        peaks[count] = peak_memory(lambda p=predictions, t=targets: HungarianMatcher().match(p, t))
    of_costs = 6 * 4  # bytes a target, in the buffer; there may be a few copies of parts of it
    assert peaks[1000] - peaks[256] < 4 * of_costs * (1000 - 256)
    assert peaks[1000] < 1000 * 32 * 32 * 4  # less than the resized targets would be in float32
