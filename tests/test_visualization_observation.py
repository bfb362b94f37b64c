"""What a model is seen to compute is what it computes, with and without PISR."""

import numpy as np
import pytest
import torch

from mask_former.errors import InputError
from pisr_maskformer.visualization.observation import has_pisr, observe
from tests.tiny import NUM_CLASSES, NUM_QUERIES, image_only, sample, tiny_model
from tests.tiny_pisr import tiny_pisr, wake


def given(height=64, width=90):
    return image_only(sample(3, height, width), height=2 * height, width=2 * width)


@pytest.fixture
def pisr():
    model = tiny_pisr({"MODEL.MASK_FORMER.TEST.PANOPTIC_ON": True}).eval()
    wake(model)
    return model


def test_a_model_without_pisr_has_one_stage():
    model = tiny_model().eval()
    seen = observe(model, given())
    assert not has_pisr(model) and seen.internals == {}
    assert np.array_equal(seen.initial.masks, seen.final.masks)
    assert seen.final.class_probs.shape == (NUM_QUERIES, NUM_CLASSES)
    assert seen.resized == (64, 90) and seen.size == (128, 180) and seen.padded[1] == 96
    with pytest.raises(InputError, match="no PISR"):
        observe(model, given(), internals=True)


def test_the_result_is_the_models_own_and_nothing_stays_behind(pisr):
    with torch.no_grad():
        expected = pisr([given()])[0]
    seen = observe(pisr, given(), internals=True)
    assert torch.equal(seen.result["sem_seg"], expected["sem_seg"])
    hooks = [module for module in pisr.modules() if module._forward_hooks or module._forward_pre_hooks]
    assert hooks == [] and pisr.sem_seg_head.predictor.recorded is None


def test_heatmaps_of_the_final_stage_are_the_models_semantic_scores(pisr):
    seen = observe(pisr, given())
    scores = seen.result["sem_seg"].numpy()
    for category in range(NUM_CLASSES):
        shown = seen.on_image(seen.final.semantic_heatmap(category))
        assert shown.shape == (128, 180)
        # the model enlarges logits, the heatmap probabilities: alike, not equal
        assert np.corrcoef(shown.ravel(), scores[category].ravel())[0, 1] > 0.98
        assert np.abs(shown - scores[category]).mean() < 0.02


def test_the_stages_are_before_and_after_pisr(pisr):
    seen = observe(pisr, given(), internals=True)
    heatmap = seen.internals["semantic_heatmaps"][2]
    # PISR blanks the padding, the prediction does not
    np.testing.assert_allclose(seen.inside(seen.initial.semantic_heatmap(2)), seen.inside(heatmap), atol=1e-5)
    assert heatmap[:, 22:].max() == 0
    assert np.abs(seen.final.masks - seen.initial.masks).max() > 1e-4


def test_with_outputs_at_zero_pisr_changes_nothing():
    seen = observe(tiny_pisr().eval(), given())
    assert np.array_equal(seen.final.masks, seen.initial.masks)
    assert np.array_equal(seen.final.class_probs, seen.initial.class_probs)


def test_padding_is_cut_off(pisr):
    seen = observe(pisr, given(64, 90))
    assert seen.inside(np.zeros((3, 16, 24))).shape == (3, 16, 22), (
        "90 pixels are 22.5 of 4; the centre of the last is outside"
    )
