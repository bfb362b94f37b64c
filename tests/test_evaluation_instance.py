"""The instance evaluator: average precision computed by hand for single masks."""

import json
import logging
import math

import numpy as np
import pytest

from mask_former.errors import InputError
from mask_former.evaluation import InstanceEvaluator
from tests.evaluation_data import CAT, DOG, HEIGHT, SCENES, SKY, WIDTH, ground_truth, instance_output

CAT_MASK = SCENES[0][0] == 301  # 8 pixels
CROWD_MASK = SCENES[0][0] == 70000
DOG_MASK = SCENES[1][0] == 9  # 15 pixels


def part(mask: np.ndarray, pixels: int) -> np.ndarray:
    """The first pixels of a mask: IoU = pixels / all."""
    kept = np.zeros(mask.size, bool)
    kept[np.flatnonzero(mask)[:pixels]] = True
    return kept.reshape(mask.shape)


def evaluate(truth, *found, output_dir=None) -> dict[str, float]:
    evaluator = InstanceEvaluator(truth, output_dir)
    samples = [{"file_name": record["file_name"]} for record in truth.records]
    evaluator.process(samples, [instance_output(*objects) for objects in found])
    return evaluator.evaluate()["segm"]


def test_perfect_masks(tmp_path):
    result = evaluate(ground_truth(tmp_path), [(CAT_MASK, CAT, 0.9)], [(DOG_MASK, DOG, 0.8)])
    assert list(result) == ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    assert [result[key] for key in ("AP", "AP50", "AP75", "APs")] == pytest.approx([100] * 4)
    assert math.isnan(result["APm"]) and math.isnan(result["APl"]), "no object is that large"


def test_thresholds_that_a_mask_reaches_count(tmp_path):
    # IoU 10/15 = 0.667 passes 0.50, 0.55, 0.60 and 0.65, four of ten thresholds; the cat is perfect
    result = evaluate(
        ground_truth(tmp_path),
        [(CAT_MASK, CAT, 0.9)],
        [(part(DOG_MASK, 10), DOG, 0.8)],
        output_dir=tmp_path / "o",
    )
    assert result["AP"] == pytest.approx((100 + 40) / 2)
    assert result["AP50"] == pytest.approx(100)
    assert result["AP75"] == pytest.approx(50)
    per_class = json.loads((tmp_path / "o" / "per_class_instance.json").read_text())
    assert per_class == {"cat": {"AP": pytest.approx(100)}, "dog": {"AP": pytest.approx(40)}}


def test_a_crowd_is_neither_found_nor_a_mistake(tmp_path):
    on_crowd = evaluate(
        ground_truth(tmp_path), [(CAT_MASK, CAT, 0.5), (CROWD_MASK, DOG, 0.9)], [(DOG_MASK, DOG, 0.8)]
    )
    assert on_crowd["AP"] == pytest.approx(100)
    elsewhere = evaluate(
        ground_truth(tmp_path), [(CAT_MASK, CAT, 0.5), (CAT_MASK, DOG, 0.9)], [(DOG_MASK, DOG, 0.8)]
    )
    assert elsewhere["AP"] == pytest.approx((100 + 50) / 2), "a dog on the cat, scored above the right one"


def test_no_predictions_are_zero(tmp_path):
    result = evaluate(ground_truth(tmp_path), [], [])
    assert result["AP"] == result["AP50"] == 0


def test_absent_class_is_left_out_and_named(tmp_path, caplog, capfd):
    caplog.set_level(logging.INFO)
    truth = ground_truth(tmp_path)
    truth.records[0]["segments_info"] = truth.records[0]["segments_info"][:2]  # no cat
    result = evaluate(truth, [(CAT_MASK, CAT, 0.9)], [(DOG_MASK, DOG, 0.8)], output_dir=tmp_path / "o")
    assert result["AP"] == pytest.approx(100)
    assert json.loads((tmp_path / "o" / "per_class_instance.json").read_text())["cat"] == {"AP": None}
    assert "not present, left out of the means (1): cat" in caplog.text
    assert "Average Precision" in caplog.text and "Average" not in capfd.readouterr().out


def test_unfit_predictions_are_refused(tmp_path):
    truth = ground_truth(tmp_path)
    with pytest.raises(
        ValueError, match=rf"photo\.jpg: instances of classes \[{SKY}\], which are not things"
    ):
        evaluate(truth, [(CAT_MASK, SKY, 0.9)], [])
    small = instance_output()
    small["instances"]._image_size = (HEIGHT, WIDTH - 1)
    with pytest.raises(
        InputError, match=r"0_panoptic\.png: the label is 10×6 pixels, but its image .*photo\.jpg is 9×6 "
    ):
        InstanceEvaluator(truth).process([{"file_name": truth.records[0]["file_name"]}], [small])
