"""The semantic evaluator: hand-computed numbers, and equality with detectron2's evaluator."""

import json
import logging
import math

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from PIL import Image

from mask_former.errors import InputError
from mask_former.evaluation import SemanticEvaluator
from mask_former.evaluation.semantic import confusion_matrix, per_class_scores, summarize
from tests.evaluation_data import (
    HEIGHT,
    ROAD,
    SKY,
    WIDTH,
    class_scores,
    ground_truth,
    register,
    unregister,
    write_dataset,
)


def test_hand_computed_numbers():
    true = np.array([[0, 0, 0, 1], [1, 2, -1, -1]])
    predicted = np.array([[0, 0, 1, 1], [1, 3, 0, 2]])  # what lies on ignored pixels counts nowhere
    confusion = confusion_matrix(predicted, true, 4)
    assert confusion.tolist() == [[2, 0, 0, 0], [1, 2, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]]
    scores = per_class_scores(confusion)
    assert scores["IoU"] == pytest.approx([200 / 3, 200 / 3, 0, math.nan], nan_ok=True)
    assert scores["ACC"] == pytest.approx([200 / 3, 100, 0, math.nan], nan_ok=True)
    assert summarize(confusion) == pytest.approx(
        {"mIoU": 400 / 9, "fwIoU": (3 * 200 / 3 + 2 * 200 / 3) / 6, "mACC": 500 / 9, "pACC": 100 * 4 / 6}
    )


def test_nothing_counted_is_nan():
    assert all(math.isnan(value) for value in summarize(np.zeros((3, 3), np.int64)).values())


@pytest.mark.parametrize(
    ("predicted", "message"),
    [(np.zeros((2, 3), int), "2×3, the ground truth 2×2"), (np.full((2, 2), 4), r"0\.\.3, not \[4\]")],
)
def test_unfit_predictions_are_refused(predicted, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(predicted, np.zeros((2, 2), int), 4)


def random_maps(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.choice(4, (HEIGHT, WIDTH), p=[0.4, 0.3, 0.2, 0.1]) for _ in range(2)]


def evaluate(evaluator, maps: list[np.ndarray], records: list[dict]) -> dict[str, float]:
    evaluator.reset()
    for record, classes in zip(records, maps, strict=True):
        evaluator.process([{"file_name": record["file_name"]}], [{"sem_seg": class_scores(classes)}])
    return evaluator.evaluate()["sem_seg"]


@pytest.mark.parametrize("seed", range(5))
def test_equals_detectron2(tmp_path, seed):
    records = write_dataset(tmp_path)
    register("tiny_semantic", records)
    # detectron2's evaluator knows no things
    del MetadataCatalog.get("tiny_semantic").stuff_dataset_id_to_contiguous_id
    try:
        theirs = evaluate(SemSegEvaluator("tiny_semantic", distributed=False), random_maps(seed), records)
    finally:
        unregister("tiny_semantic")
    evaluator = SemanticEvaluator(ground_truth(tmp_path), tmp_path / "out")
    ours = evaluate(evaluator, random_maps(seed), records)
    assert ours == pytest.approx({key: theirs[key] for key in ours}, abs=1e-12, rel=0)
    assert list(ours) == ["mIoU", "fwIoU", "mACC", "pACC"]
    per_class = json.loads((tmp_path / "out" / "per_class_semantic.json").read_text())
    for name in evaluator.ground_truth.class_names:
        assert per_class[name]["IoU"] == pytest.approx(theirs[f"IoU-{name}"], abs=1e-12, rel=0)
        assert per_class[name]["ACC"] == pytest.approx(theirs[f"ACC-{name}"], abs=1e-12, rel=0)


def test_panoptic_ground_truth_gives_the_same_numbers(tmp_path):
    """The semantic files ignore what is void or crowd in the panoptic ones."""
    results = [
        evaluate(SemanticEvaluator(truth), random_maps(0), truth.records)
        for truth in (ground_truth(tmp_path), ground_truth(tmp_path, without="sem_seg_file_name"))
    ]
    assert results[0] == results[1]


def test_class_map_instead_of_scores(tmp_path):
    truth = ground_truth(tmp_path)
    evaluator = SemanticEvaluator(truth)
    maps = random_maps(1)
    expected = evaluate(evaluator, maps, truth.records)
    evaluator.reset()
    samples = [{"file_name": record["file_name"]} for record in truth.records]
    evaluator.process(samples, [{"sem_seg": torch.from_numpy(classes)} for classes in maps])
    assert evaluator.evaluate()["sem_seg"] == expected


def test_absent_class_is_named(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    truth = ground_truth(tmp_path, without="sem_seg_file_name")
    for record in truth.records:
        record["segments_info"] = [{**s, "iscrowd": int(s["isthing"])} for s in record["segments_info"]]
    result = evaluate(
        SemanticEvaluator(truth), [np.full((HEIGHT, WIDTH), c) for c in (SKY, ROAD)], truth.records
    )
    assert "not present, left out of the means (2): cat, dog" in caplog.text
    # scene 0: sky 30 right, road 14 taken for sky; scene 1: sky 25 taken for road
    assert result["pACC"] == pytest.approx(100 * 30 / 69)
    assert result["mIoU"] == pytest.approx(100 * (30 / 69 + 0) / 2)


def test_label_beyond_the_classes_is_refused(tmp_path):
    truth = ground_truth(tmp_path)
    path = truth.records[0]["sem_seg_file_name"]
    Image.fromarray(np.full((HEIGHT, WIDTH), 7, np.uint8)).save(path)
    with pytest.raises(
        InputError, match=r"0_semantic\.png: a pixel has class 7, but the model has classes 0\.\.3"
    ):
        evaluate(SemanticEvaluator(truth), random_maps(0), truth.records)


@pytest.mark.parametrize(("without", "label"), [("", "0_semantic"), ("sem_seg_file_name", "0_panoptic")])
def test_a_label_of_another_size_than_the_image_names_both_files(tmp_path, without, label):
    truth = ground_truth(tmp_path, without=without)
    maps = [classes[:, :-1] for classes in random_maps(0)]
    words = rf"{label}\.png: the label is 10×6 pixels, but its image .*side_0/photo\.jpg is 9×6 "
    with pytest.raises(InputError, match=words):
        evaluate(SemanticEvaluator(truth), maps, truth.records)
