"""Panoptic quality: hand-computed scenes, and equality with panopticapi on random ones."""

import math

import numpy as np
import pytest
from panopticapi.evaluation import pq_compute_single_core

from mask_former.data.id_map import write_id_map
from mask_former.evaluation.panoptic_quality import PanopticQuality, compare_segments
from tools.benchmarks import panoptic_quality as benchmark

SKY, ROAD, CAT, DOG = range(4)
THINGS = [CAT, DOG]


def segment(segment_id: int, category: int, iscrowd: int = 0) -> dict:
    return {"id": segment_id, "category_id": category, "iscrowd": iscrowd}


def row(*runs: tuple[int, int]) -> np.ndarray:
    """A map one pixel high, from (id, length) runs."""
    return np.concatenate([np.full(length, value, np.int32) for value, length in runs])[None]


def quality_of(gt, gt_segments, pred, pred_segments) -> PanopticQuality:
    quality = PanopticQuality(4, THINGS)
    quality.update(gt, gt_segments, pred, pred_segments)
    return quality


def test_hand_computed_scene():
    gt = row((10, 6), (20, 4))  # sky 6, cat 4
    pred = row((1, 8), (2, 2))  # sky 8: IoU 6/8; cat 2: IoU 2/4, not above 0.5
    quality = quality_of(gt, [segment(10, SKY), segment(20, CAT)], pred, [segment(1, SKY), segment(2, CAT)])
    summary = quality.summary()
    assert summary["PQ_st"] == summary["SQ_st"] == pytest.approx(75)
    assert summary["RQ_st"] == pytest.approx(100)
    assert summary["PQ_th"] == summary["SQ_th"] == summary["RQ_th"] == 0
    assert summary["PQ"] == pytest.approx(37.5)
    assert [quality.tp.tolist(), quality.fp.tolist(), quality.fn.tolist()] == [
        [1, 0, 0, 0],
        [0, 0, 1, 0],
        [0, 0, 1, 0],
    ]


def test_void_is_left_out_of_the_union():
    # the prediction covers 6 cat pixels and 4 void ones: IoU 6/6, not 6/10
    quality = quality_of(row((5, 6), (0, 4)), [segment(5, CAT)], row((1, 10)), [segment(1, CAT)])
    assert quality.summary()["PQ"] == pytest.approx(100)


@pytest.mark.parametrize(("void", "false_positives"), [(5, 1), (6, 0)])
def test_a_prediction_mostly_on_void_is_forgiven(void, false_positives):
    quality = quality_of(row((0, void), (5, 10 - void)), [segment(5, SKY)], row((1, 10)), [segment(1, DOG)])
    assert quality.fp[DOG] == false_positives


@pytest.mark.parametrize(("category", "false_positives"), [(CAT, 0), (DOG, 1)])
def test_only_a_crowd_of_its_class_forgives(category, false_positives):
    gt = row((7, 8), (5, 2))
    quality = quality_of(
        gt, [segment(7, CAT, iscrowd=1), segment(5, SKY)], row((1, 10)), [segment(1, category)]
    )
    assert quality.fp[category] == false_positives
    assert quality.fn[CAT] == 0, "a crowd is never missed"
    assert quality.tp.sum() == 0, "and never matched"


def test_void_and_crowd_add_up():
    gt = row((0, 3), (7, 3), (5, 4))  # 3 void + 3 crowd of 10
    quality = quality_of(gt, [segment(7, CAT, 1), segment(5, SKY)], row((1, 10)), [segment(1, CAT)])
    assert quality.fp[CAT] == 0


def test_of_two_crowds_of_a_class_the_last_listed_counts_as_in_panopticapi():
    gt = row((7, 6), (8, 2), (5, 2))
    crowds = [segment(7, CAT, 1), segment(8, CAT, 1)]
    pred, pred_segments = row((1, 10)), [segment(1, CAT)]
    assert quality_of(gt, [*crowds, segment(5, SKY)], pred, pred_segments).fp[CAT] == 1
    assert quality_of(gt, [*crowds[::-1], segment(5, SKY)], pred, pred_segments).fp[CAT] == 0


def test_empty_prediction_misses_everything():
    quality = quality_of(row((5, 2), (6, 2)), [segment(5, CAT), segment(6, SKY)], row((0, 4)), [])
    assert quality.fn.tolist() == [1, 0, 1, 0]
    assert quality.summary()["PQ"] == 0


def test_nothing_at_all_is_nan_not_zero():
    summary = quality_of(row((0, 4)), [], row((0, 4)), []).summary()
    assert all(math.isnan(value) for value in summary.values())


def test_absent_classes_do_not_count():
    quality = quality_of(row((5, 4)), [segment(5, SKY)], row((1, 4)), [segment(1, SKY)])
    assert quality.present.tolist() == [True, False, False, False]
    assert quality.summary()["PQ"] == pytest.approx(100)
    assert math.isnan(quality.summary()["PQ_th"])
    assert np.isnan(quality.per_class()["PQ"]).tolist() == [False, True, True, True]


def test_areas_come_from_the_map_not_from_the_list():
    wrong = {**segment(5, SKY), "area": 1}
    quality = quality_of(row((5, 4)), [wrong], row((1, 4)), [{**segment(1, SKY), "area": 1000}])
    assert quality.summary()["PQ"] == pytest.approx(100)


def test_comparison_names_the_segments():
    gt = row((10, 4), (20, 4), (30, 4))
    pred = row((3, 4), (1, 4), (2, 4))
    comparison = compare_segments(
        gt,
        [segment(10, CAT), segment(20, CAT), segment(30, SKY)],
        pred,
        [segment(1, DOG), segment(2, SKY), segment(3, CAT)],
    )
    assert [(match.gt_id, match.pred_id, match.iou) for match in comparison.matches] == [
        (10, 3, 1),
        (30, 2, 1),
    ]
    assert [missed["id"] for missed in comparison.missed] == [20]
    assert [spurious["id"] for spurious in comparison.spurious] == [1]


@pytest.mark.parametrize(
    ("pred", "pred_segments", "message"),
    [
        (row((1, 2), (2, 2)), [segment(1, CAT)], r"ids \[2\] are in the map only"),
        (row((1, 4)), [segment(1, CAT), segment(9, CAT)], r"\[9\] in the list only"),
        (row((1, 4)), [segment(1, CAT), segment(1, DOG)], "distinct ids"),
        (row((1, 4)), [segment(1, 4)], r"classes \[4\], but there are only 4"),
        (row((1, 5)), [segment(1, CAT)], "1×5, the ground truth 1×4"),
    ],
)
def test_inconsistent_predictions_are_refused(pred, pred_segments, message):
    quality = PanopticQuality(4, THINGS)
    with pytest.raises(ValueError, match=message):
        quality.update(row((5, 4)), [segment(5, CAT)], pred, pred_segments)
    assert quality.images == 0


def test_merge_adds_up():
    first = quality_of(row((5, 4)), [segment(5, CAT)], row((1, 4)), [segment(1, CAT)])
    second = quality_of(row((5, 4)), [segment(5, CAT)], row((0, 4)), [])
    first.merge(second)
    assert first.images == 2
    assert first.summary()["PQ"] == pytest.approx(100 * 1 / 1.5)


def random_scene(rng: np.random.Generator, num_classes: int) -> tuple:
    """Blocky ground truth with void, crowds and ids of any size; the prediction is a damaged copy of it."""
    cells = rng.integers(0, rng.integers(1, 9), (4, 5))
    gt_cells = rng.permutation(np.concatenate([[0], rng.choice(2**24 - 1, 9, replace=False) + 1]))[cells]
    gt_segments = [
        segment(int(i), int(rng.integers(num_classes)), int(rng.random() < 0.25))
        for i in np.unique(gt_cells)
        if i
    ]
    if rng.random() < 0.2 and gt_segments:
        gt_segments.append(segment(2**24 - 1, 0))  # listed without pixels
    gt = np.kron(gt_cells, np.ones((4, 4), np.int64)).astype(np.int32)
    if rng.random() < 0.1:
        gt_segments = gt_segments[1:]  # pixels of an id that is not listed

    old_ids = np.unique(gt_cells)
    new_ids = rng.permutation(np.arange(1, 40))[: len(old_ids)]  # gaps between them
    new_ids[rng.random(len(new_ids)) < 0.2] = 0
    pred = new_ids[np.searchsorted(old_ids, gt)]
    pred = np.roll(pred, rng.integers(-2, 3, 2), axis=(0, 1))
    if rng.random() < 0.05:
        pred = np.zeros_like(pred)
    true_class = {s["id"]: s["category_id"] for s in gt_segments}
    pred_segments = []
    for new in np.unique(pred[pred > 0]):
        category = true_class.get(int(old_ids[np.flatnonzero(new_ids == new)[0]]), 0)
        if rng.random() < 0.2:
            category = int(rng.integers(num_classes))
        pred_segments.append(segment(int(new), category))
    return gt, gt_segments, pred.astype(np.int32), pred_segments


def test_equals_panopticapi_on_random_scenes(tmp_path):
    rng = np.random.default_rng(3)
    num_classes, things = 5, [0, 1, 2]
    quality = PanopticQuality(num_classes, things)
    pairs = []
    for index in range(300):
        gt, gt_segments, pred, pred_segments = random_scene(rng, num_classes)
        quality.update(gt, gt_segments, pred, pred_segments)
        pair = []
        for side, ids, segments in (("gt", gt, gt_segments), ("pred", pred, pred_segments)):
            name = f"{side}_{index}.png"
            write_id_map(tmp_path / name, ids)
            area = {s["id"]: int((ids == s["id"]).sum()) for s in segments}
            infos = [{**s, "area": area[s["id"]]} for s in segments]
            pair.append({"file_name": name, "image_id": index, "segments_info": infos})
        pairs.append(pair)
    categories = {c: {"id": c, "isthing": int(c in things)} for c in range(num_classes)}
    expected = pq_compute_single_core(0, pairs, tmp_path, tmp_path, categories)

    for c in range(num_classes):
        assert (quality.tp[c], quality.fp[c], quality.fn[c]) == (
            expected[c].tp,
            expected[c].fp,
            expected[c].fn,
        )
        assert quality.tp[c] > 20 and quality.fp[c] > 20 and quality.fn[c] > 20, "the scenes say something"
    summary = quality.summary()
    for suffix, isthing in (("", None), ("_th", True), ("_st", False)):
        means, _ = expected.pq_average(categories, isthing)
        for key in ("pq", "sq", "rq"):
            assert summary[key.upper() + suffix] / 100 == pytest.approx(means[key], abs=1e-12, rel=0)
            assert 0 <= summary[key.upper() + suffix] <= 100


def test_the_benchmark_counts_the_same(capsys):
    benchmark.main(["--quick", "--images", "1"])
    printed = capsys.readouterr().out
    assert "| True |" in printed and "False" not in printed
