"""Context accuracy: what is found, who answers, what chance is, and which data sets have it."""

import json
import math

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.structures import Instances

from mask_former.data.catalog import panoptic_metadata
from mask_former.data.coco_panoptic import load_coco_panoptic
from mask_former.data.toy_scenes import write_toy_scenes
from mask_former.errors import InputError
from mask_former.evaluation import ContextEvaluator, GroundTruth, PanopticEvaluator, build_evaluators
from mask_former.evaluation.context import Pair, answers, declared_pairs
from tests.evaluation_data import (
    CAT,
    CATEGORIES,
    DOG,
    SCENES,
    ground_truth,
    instance_output,
    register,
    unregister,
    write_dataset,
)
from tests.test_evaluation_build import config, kinds

CAT_MASK, DOG_MASK = SCENES[0][0] == 301, SCENES[1][0] == 9
NOWHERE = np.zeros_like(CAT_MASK)


def evaluate(folder, first, second):
    """Of the two scenes, one with a cat (and a crowd of dogs), one with a dog."""
    truth = ground_truth(folder)
    evaluator = ContextEvaluator(truth, [Pair(CAT, DOG)])
    inputs = [{"file_name": record["file_name"]} for record in truth.records]
    evaluator.process(inputs, [instance_output(*first), instance_output(*second)])
    return evaluator.evaluate()["context"]


def test_the_best_instance_over_a_thing_answers_for_it(tmp_path):
    found = evaluate(
        tmp_path,
        [(CAT_MASK, DOG, 0.4), (CAT_MASK, CAT, 0.6)],
        [(DOG_MASK, CAT, 0.5), (DOG_MASK, DOG, 0.1), (NOWHERE, DOG, 0.9)],
    )
    # cat right, dog taken for a cat; the crowd of dogs is nobody's
    assert found["accuracy"] == found["accuracy_cat_dog"] == 50
    assert found["recall"] == 100
    assert found["chance"] == 50, "one cat and one dog: always the same answer is right once"


def test_what_is_not_found_counts_for_recall_alone(tmp_path):
    half = CAT_MASK.copy()
    half[4] = False  # IoU 0.5 is not above it
    found = evaluate(tmp_path, [(half, CAT, 0.9)], [(DOG_MASK, DOG, 0.2)])
    assert (found["accuracy"], found["recall"]) == (100, 50)
    assert found["chance"] == 100, "the only thing found is a dog: who always says dog is right"
    nothing = evaluate(tmp_path, [], [])
    assert nothing["recall"] == 0 and math.isnan(nothing["accuracy"]) and math.isnan(nothing["chance"])


def test_pairwise_accuracy_leaves_out_a_third_class(tmp_path):
    found = evaluate(tmp_path, [(CAT_MASK, 1, 0.9)], [(DOG_MASK, DOG, 0.2)])
    assert 1 not in (CAT, DOG) and (found["accuracy"], found["pairwise"]) == (50, 100)
    found = evaluate(tmp_path, [(CAT_MASK, DOG, 0.9)], [(DOG_MASK, DOG, 0.2)])
    assert (found["accuracy"], found["pairwise"], found["pairwise_cat_dog"]) == (50, 50, 50)
    neither = evaluate(tmp_path, [(CAT_MASK, 1, 0.9)], [(DOG_MASK, 1, 0.2)])
    assert neither["accuracy"] == 0 and math.isnan(neither["pairwise"])


def test_a_class_outside_the_pair_is_an_answer_too():
    ids, segments = SCENES[1]
    instances = instance_output((DOG_MASK, 1, 0.9), (DOG_MASK, DOG, 0.8))["instances"]
    assert answers(ids, segments[1:], instances) == {9: 1}
    assert answers(ids, segments[1:], instance_output()["instances"]) == {9: None}


def test_counts_of_processes_add_up(tmp_path, monkeypatch):
    truth = ground_truth(tmp_path)
    evaluator = ContextEvaluator(truth, [Pair(CAT, DOG)])
    evaluator.process([{"file_name": truth.records[0]["file_name"]}], [instance_output((CAT_MASK, CAT, 1.0))])
    other = ContextEvaluator(truth, [Pair(CAT, DOG)])
    other.process([{"file_name": truth.records[1]["file_name"]}], [instance_output((DOG_MASK, CAT, 1.0))])
    monkeypatch.setattr(
        "mask_former.evaluation.context.comm.gather", lambda mine: [mine, other.counts], raising=True
    )
    assert evaluator.evaluate()["context"]["accuracy"] == 50


def described(folder, pairs):
    """Metadata of a data set whose panoptic JSON has a declaration beside it."""
    (folder / "ambiguous_val.json").write_text(pairs if isinstance(pairs, str) else json.dumps(pairs))
    return Metadata(**panoptic_metadata(CATEGORIES), panoptic_json=str(folder / "panoptic_val.json"))


def test_a_data_set_declares_its_pairs_beside_its_json(tmp_path):
    metadata = described(tmp_path, {"pairs": [{"first": "cat", "second": "dog", "why": "?"}]})
    assert declared_pairs(metadata) == [Pair(CAT, DOG)]
    elsewhere = Metadata(**panoptic_metadata(CATEGORIES), panoptic_json=str(tmp_path / "other_val.json"))
    assert declared_pairs(elsewhere) == declared_pairs(Metadata(stuff_classes=["a"])) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("no JSON", "needs"),
        ({"pairs": [{"first": "cat"}]}, "needs"),
        ({"pairs": [{"first": "cat", "second": "cow"}]}, "'cow' is no class of panoptic_val.json"),
    ],
)
def test_a_bad_declaration_is_named(tmp_path, content, said):
    with pytest.raises(InputError, match=rf"ambiguous_val.json: .*{said}"):
        declared_pairs(described(tmp_path, content))


def test_it_is_evaluated_where_it_is_declared_and_instances_are_on(tmp_path):
    register("tiny_context", write_dataset(tmp_path))
    try:
        both = config(PANOPTIC=True, SEMANTIC=False, INSTANCE=True)
        assert ContextEvaluator not in kinds(build_evaluators(both, "tiny_context", tmp_path))
        described(tmp_path, {"pairs": [{"first": "cat", "second": "dog"}]})
        MetadataCatalog.get("tiny_context").set(panoptic_json=str(tmp_path / "panoptic_val.json"))
        assert kinds(build_evaluators(both, "tiny_context", tmp_path))[-1] == ContextEvaluator
        without = config(PANOPTIC=True, SEMANTIC=False)
        assert kinds(build_evaluators(without, "tiny_context", tmp_path)) == [PanopticEvaluator]
    finally:
        unregister("tiny_context")


def test_ground_truth_as_prediction_is_always_right_on_rendered_scenes(tmp_path):
    """Every hull and every disc of real toy scenes is found and right when the prediction is the truth."""
    write_toy_scenes(tmp_path / "toy", num_train=1, num_val=6, size=64, seed=0)
    notes = tmp_path / "toy/annotations"
    json_file = notes / "panoptic_val.json"
    records = load_coco_panoptic(tmp_path / "toy/val", json_file, notes / "panoptic_val")
    categories = json.loads(json_file.read_text())["categories"]
    metadata = Metadata(**panoptic_metadata(categories), panoptic_json=str(json_file))
    truth = GroundTruth("toy", records, metadata)
    evaluator = ContextEvaluator(truth, declared_pairs(metadata))
    listed = 0
    for record in records:
        ids, segments = truth.panoptic(record)
        things = [s for s in segments if s["isthing"] and not s["iscrowd"]]
        found = Instances(ids.shape)
        found.pred_masks = torch.from_numpy(np.stack([ids == s["id"] for s in things]))
        found.pred_classes = torch.tensor([s["category_id"] for s in things])
        found.scores = torch.ones(len(things))
        evaluator.process([{"file_name": record["file_name"]}], [{"instances": found}])
    for annotation in json.loads((notes / "ambiguous_val.json").read_text())["annotations"]:
        listed += len(annotation["things"])
    result = evaluator.evaluate()["context"]
    assert listed > 6 and evaluator.counts.things.sum() == listed, "exactly the things listed as ambiguous"
    assert result["accuracy"] == result["recall"] == 100
    assert {"accuracy_boat_cart", "recall_ball_wheel"} <= result.keys()
