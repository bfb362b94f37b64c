"""The panoptic evaluator: from records and model outputs to numbers, per-class file and kept predictions."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from panopticapi.evaluation import pq_compute_single_core

from mask_former.data.id_map import read_id_map
from mask_former.errors import InputError
from mask_former.evaluation import PanopticEvaluator
from mask_former.evaluation.predictions import unique_names
from tests.evaluation_data import (
    CATEGORIES,
    DOG,
    ROAD,
    SCENES,
    SKY,
    ground_truth,
    panoptic_output,
    scene,
    segments,
)

# scene 0: the road covers cat and crowd, the cat is found nowhere; scene 1: the sky lacks its last row
PREDICTIONS = (
    (scene((1, 0, 0, 3, 10), (2, 3, 0, 6, 10)), segments(_1=SKY, _2=ROAD)),
    (scene((1, 0, 0, 2, 10), (3, 2, 2, 5, 7)), segments(_1=SKY, _3=DOG)),
)


SCENE_0_WITHOUT_ROAD = (scene((1, 0, 0, 3, 10)), segments(_1=SKY))


def evaluate(evaluator: PanopticEvaluator, predictions=PREDICTIONS) -> dict[str, float]:
    evaluator.reset()
    for record, prediction in zip(evaluator.ground_truth.records, predictions, strict=False):
        evaluator.process([{"file_name": record["file_name"]}], [panoptic_output(*prediction)])
    return evaluator.evaluate()["panoptic_seg"]


def test_perfect_prediction(tmp_path):
    perfect = [(ids, [s for s in infos if not s["iscrowd"]]) for ids, infos in SCENES]
    perfect[0] = (np.where(SCENES[0][0] == 70000, 0, SCENES[0][0]), perfect[0][1])
    result = evaluate(PanopticEvaluator(ground_truth(tmp_path)), perfect)
    assert result == pytest.approx(dict.fromkeys(result, 100.0))
    assert list(result) == ["PQ", "SQ", "RQ", "PQ_th", "SQ_th", "RQ_th", "PQ_st", "SQ_st", "RQ_st"]


def test_hand_computed_numbers(tmp_path):
    result = evaluate(PanopticEvaluator(ground_truth(tmp_path)))
    # sky: 30/30 and 20/25; road: 14 of (14 + 8 cat + 8 crowd) predicted, IoU 14/30: missed and spurious;
    # cat missed; dog 15/15
    assert result["PQ_st"] == pytest.approx(100 * (0.9 + 0) / 2)
    assert result["PQ_th"] == pytest.approx(100 * (0 + 1) / 2)
    assert result["PQ"] == pytest.approx(47.5)


def test_per_class_file_and_log(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    evaluator = PanopticEvaluator(ground_truth(tmp_path), tmp_path / "out")
    evaluate(evaluator, [SCENE_0_WITHOUT_ROAD, PREDICTIONS[1]])
    per_class = json.loads((tmp_path / "out" / "per_class_panoptic.json").read_text())
    assert per_class["sky"]["TP"] == 2
    assert per_class["cat"] == {"PQ": 0.0, "SQ": 0.0, "RQ": 0.0, "TP": 0, "FP": 0, "FN": 1}
    assert per_class["dog"]["PQ"] == pytest.approx(100)
    assert "| sky" in caplog.text and "of 2 images" not in caplog.text


def test_class_that_never_occurs_is_null_and_named(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    evaluator = PanopticEvaluator(ground_truth(tmp_path), tmp_path / "out")
    evaluator.ground_truth.records[0]["segments_info"] = segments(_100=SKY, _200=ROAD)
    evaluate(evaluator)
    per_class = json.loads((tmp_path / "out" / "per_class_panoptic.json").read_text())
    assert per_class["cat"] == {"PQ": None, "SQ": None, "RQ": None, "TP": 0, "FP": 0, "FN": 0}
    assert "not present, left out of the means (1): cat" in caplog.text


def test_partial_evaluation_is_said(tmp_path, caplog):
    evaluate(PanopticEvaluator(ground_truth(tmp_path)), PREDICTIONS[:1])
    assert "tiny: 1 of 2 images were evaluated" in caplog.text


def test_reset_forgets(tmp_path):
    evaluator = PanopticEvaluator(ground_truth(tmp_path))
    assert evaluate(evaluator) == evaluate(evaluator)


def test_errors_name_the_image(tmp_path):
    evaluator = PanopticEvaluator(ground_truth(tmp_path))
    first = evaluator.ground_truth.records[0]["file_name"]
    unlisted = panoptic_output(PREDICTIONS[0][0], segments(_1=SKY))
    with pytest.raises(ValueError, match=r"side_0/photo\.jpg: "):
        evaluator.process([{"file_name": first}], [unlisted])
    with pytest.raises(ValueError, match=r"other\.jpg is not an image of data set tiny"):
        evaluator.process([{"file_name": "other.jpg"}], [panoptic_output(*PREDICTIONS[0])])


def test_a_label_of_another_size_than_the_image_names_both_files(tmp_path):
    evaluator = PanopticEvaluator(ground_truth(tmp_path))
    first = evaluator.ground_truth.records[0]["file_name"]
    words = r"0_panoptic\.png: the label is 10×6 pixels, but its image .*side_0/photo\.jpg is 10×3 "
    with pytest.raises(InputError, match=words):
        evaluator.process([{"file_name": first}], [panoptic_output(PREDICTIONS[0][0][:3], segments(_1=SKY))])


def test_kept_predictions_give_panopticapi_the_same_numbers(tmp_path):
    evaluator = PanopticEvaluator(ground_truth(tmp_path), tmp_path / "out", keep_predictions=True)
    result = evaluate(evaluator)
    kept = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    assert [{k: c[k] for k in ("id", "name", "isthing")} for c in kept["categories"]] == CATEGORIES
    assert [image["id"] for image in kept["images"]] == ["scene 0", "scene 1"]
    assert [entry["file_name"] for entry in kept["annotations"]] == [
        "side_0__photo.png",
        "side_1__photo.png",
    ]
    sky, road = kept["annotations"][0]["segments_info"]
    assert sky == {"id": 1, "category_id": 10, "iscrowd": 0, "area": 30, "bbox": [0, 0, 10, 3]}
    assert (road["category_id"], road["bbox"]) == (20, [0, 3, 10, 3])
    assert np.array_equal(read_id_map(tmp_path / "out/panoptic/side_1__photo.png"), PREDICTIONS[1][0])

    pairs = []
    for record, prediction in zip(evaluator.ground_truth.records, kept["annotations"], strict=True):
        infos = [
            {**s, "category_id": CATEGORIES[s["category_id"]]["id"], "area": int((ids == s["id"]).sum())}
            for ids, s in ((read_id_map(record["pan_seg_file_name"]), s) for s in record["segments_info"])
        ]
        true = {"file_name": Path(record["pan_seg_file_name"]).name, "image_id": 0, "segments_info": infos}
        pairs.append((true, prediction))
    categories = {category["id"]: category for category in CATEGORIES}
    counted = pq_compute_single_core(0, pairs, tmp_path, tmp_path / "out" / "panoptic", categories)
    assert counted.pq_average(categories, None)[0]["pq"] == pytest.approx(result["PQ"] / 100, abs=1e-12)


def test_keeping_predictions_needs_a_folder(tmp_path):
    with pytest.raises(ValueError, match="output_dir"):
        PanopticEvaluator(ground_truth(tmp_path), keep_predictions=True)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["x/a.jpg", "x/b.jpg"], ["a", "b"]),
        (["x/a.jpg", "x/a.png", "x/b.jpg"], ["a_jpg", "a_png", "b"]),
        (["x/a.jpg", "y/a.jpg"], ["x__a", "y__a"]),
        (["x/a.jpg", "x/a.png", "y/a.jpg"], ["a_jpg", "a_png", "a"]),
        (["/x/s/a.jpg", "/y/s/a.jpg", "/x/s/A.JPG"], ["x__s__a_jpg", "a", "x__s__A_JPG_2"]),
        (["/x/s/a.jpg", "/y/s/a.jpg", "/y/t/a.jpg"], ["x__s__a", "y__s__a", "t__a"]),
        (["../a.jpg", "a.jpg"], ["a", "a_2"]),
        (["x/a.jpg", "y/a.jpg", "x__a.png"], ["x__a", "y__a", "x__a_2"]),
        ([], []),
    ],
)
def test_unique_names(paths, names):
    found = unique_names(paths)
    assert found == names
    assert len({name.casefold() for name in found}) == len(paths)
