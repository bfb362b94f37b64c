"""What the whole model returns in evaluation: which results, of which size, with the data set's things."""

from typing import Any

import pytest
import torch
from detectron2.structures import Instances

from tests.tiny import NUM_CLASSES, THINGS, image_only, sample, tiny_model

TEST = "MODEL.MASK_FORMER.TEST."

ALL_RESULTS = {TEST + "SEMANTIC_ON": True, TEST + "PANOPTIC_ON": True, TEST + "INSTANCE_ON": True}


@pytest.mark.parametrize(
    ("switches", "keys"),
    [
        ({}, {"sem_seg"}),
        ({"PANOPTIC_ON": True}, {"sem_seg", "panoptic_seg"}),
        ({"SEMANTIC_ON": False, "PANOPTIC_ON": True}, {"panoptic_seg"}),
        ({"SEMANTIC_ON": False, "INSTANCE_ON": True}, {"instances"}),
        ({"PANOPTIC_ON": True, "INSTANCE_ON": True}, {"sem_seg", "panoptic_seg", "instances"}),
    ],
)
@torch.no_grad()
def test_results_that_are_switched_on(switches: dict[str, bool], keys: set[str]) -> None:
    model = tiny_model({TEST + name: value for name, value in switches.items()}).eval()
    assert [result.keys() for result in model([image_only(sample())])] == [keys]


@pytest.mark.parametrize("switches", [{}, ALL_RESULTS], ids=["resized after mixing", "resized before"])
@torch.no_grad()
def test_results_have_the_size_asked_for(switches: dict[str, Any]) -> None:
    batch = [image_only(sample(0, 64, 64), height=100, width=30), image_only(sample(1, 40, 50))]
    results = tiny_model(switches).eval()(batch)
    for result, size in zip(results, [(100, 30), (40, 50)], strict=True):
        assert result["sem_seg"].shape == (NUM_CLASSES, *size)
        if switches:
            ids, segments = result["panoptic_seg"]
            assert ids.shape == size and set(ids.unique().tolist()) - {0} == {s["id"] for s in segments}
            assert isinstance(result["instances"], Instances) and result["instances"].image_size == size
            assert result["instances"].pred_masks.shape[1:] == size


@torch.no_grad()
def test_things_are_those_of_the_data_set() -> None:
    model = tiny_model(ALL_RESULTS).eval()
    model.sem_seg_head.predictor.class_embed.bias[-1] = -20.0  # no query is "no object"
    result = model([image_only(sample())])[0]
    assert model.thing_ids == set(THINGS)
    assert len(result["panoptic_seg"][1]) > 0
    assert all(s["isthing"] == (s["category_id"] in THINGS) for s in result["panoptic_seg"][1])
    assert set(result["instances"].pred_classes.tolist()) <= set(THINGS)


@torch.no_grad()
def test_thresholds_come_from_the_config() -> None:
    thresholds = {TEST + "OBJECT_MASK_THRESHOLD": 0.7, TEST + "OVERLAP_THRESHOLD": 0.8}
    model = tiny_model(ALL_RESULTS | thresholds).eval()
    assert (model.object_mask_threshold, model.overlap_threshold) == (0.7, 0.8)
    model.object_mask_threshold = 1.0
    ids, segments = model([image_only(sample())])[0]["panoptic_seg"]
    assert ids.max() == 0 and segments == []


@torch.no_grad()
def test_resizing_before_or_after_mixing_classes() -> None:
    """At the padded size itself nothing is resized, so both agree; at another size they need not."""
    model = tiny_model().eval()
    for size, same in ((64, True), (100, False)):
        batch = [image_only(sample(), height=size, width=size)]
        model.resize_before_mixing = False
        after = model(batch)[0]["sem_seg"]
        model.resize_before_mixing = True
        before = model(batch)[0]["sem_seg"]
        assert torch.allclose(before, after, atol=1e-6) == same
