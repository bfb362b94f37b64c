"""What the MaskFormer host hands to PISR and makes of its answer, argument by argument."""

import pytest
import torch

from tests.tiny import THINGS
from tests.tiny_pisr import batch, tiny_pisr, wake


@pytest.fixture(scope="module")
def passed():
    """One training forward: the predictor's inputs and outputs, PISR's arguments and its answer."""
    model = tiny_pisr()
    wake(model)
    predictor = model.sem_seg_head.predictor
    images = model.preprocess(batch())
    seen = {"predictor": predictor}
    predictor.register_forward_pre_hook(lambda _, given: seen.update(memory=given[0], features=given[1]))
    predictor.pisr.register_forward_hook(
        lambda _, given, named, answer: seen.update(given=given, named=named, answer=answer), with_kwargs=True
    )
    seen["outputs"] = model.sem_seg_head(model.backbone(images.tensor), images.image_sizes)
    return seen


def test_arguments_are_the_first_prediction(passed):
    predictor, named = passed["predictor"], passed["named"]
    queries = predictor.decode(passed["memory"])[-1]
    masks = torch.einsum("bqd,bdhw->bqhw", predictor.mask_embed(queries), passed["features"])
    scores = predictor.class_embed(queries).exp()
    assert len(passed["given"]) == 1 and passed["given"][0] is passed["features"]
    torch.testing.assert_close(named["queries"], queries)
    torch.testing.assert_close(named["region_maps"], 1 / (1 + (-masks).exp()))
    # over all classes and "no object", which comes last and is left out
    torch.testing.assert_close(named["class_probs"], scores[..., :-1] / scores.sum(-1, keepdim=True))
    assert named["return_internals"] is False


@pytest.mark.parametrize("name", ["queries", "region_maps", "class_probs"])
def test_gradients_flow_back_through_every_argument(passed, name):
    outputs = passed["outputs"]
    loss = outputs["pred_masks"].square().sum() + outputs["pred_logits"].square().sum()
    (gradient,) = torch.autograd.grad(loss, passed["named"][name], retain_graph=True)
    assert gradient.any()
    # and further, into the decoder that made it
    (gradient,) = torch.autograd.grad(
        passed["named"][name].square().sum(), passed["predictor"].query_embed.weight, retain_graph=True
    )
    assert gradient.any()


def test_padding_is_what_lies_beyond_each_image(passed):
    # 64×96 and 96×70 in a batch of 96×96; centres of stride 4 at 2, 6, …: 66 lies inside 70, 70 does not
    expected = torch.zeros(2, 1, 24, 24, dtype=torch.bool)
    expected[0, :, :16] = True
    expected[1, :, :, :17] = True
    assert torch.equal(passed["named"]["valid_pixels"], expected)


def test_things_are_those_of_the_data_set(passed):
    is_thing = passed["predictor"].pisr.encoder.is_thing
    assert is_thing.nonzero().flatten().tolist() == THINGS and len(is_thing) == 5


def test_final_prediction_is_made_of_the_answer_by_the_same_layers(passed):
    predictor, answer, outputs = passed["predictor"], passed["answer"], passed["outputs"]
    masks = torch.einsum("bqd,bdhw->bqhw", predictor.mask_embed(answer.queries), answer.features.on_pixels())
    torch.testing.assert_close(outputs["pred_masks"], masks)
    torch.testing.assert_close(outputs["pred_logits"], predictor.class_embed(answer.queries))
    assert not torch.allclose(outputs["pred_masks"], outputs["initial"]["pred_masks"], rtol=0.01, atol=0.01)
    assert outputs["statistics"] is predictor.pisr.last_statistics and outputs["aux_outputs"] == []
