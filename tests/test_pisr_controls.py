"""Controls: no feedback, where the loss alone differs, and the same model with another image's encodings."""

import pytest
import torch

from mask_former.errors import InputError
from pisr_maskformer.hosts.maskformer import recorded_internals
from tests.tiny import image_only, sample
from tests.tiny_pisr import BASELINE, CONFIGS, batch, tiny_pisr, wake
from tools.evidence.probe import first_prediction, predictor_of, swapped_encodings


@pytest.fixture(scope="module")
def control():
    return tiny_pisr(path=CONFIGS / "ablations/control_no_feedback.yaml")


def test_it_adds_no_parameter_to_the_baseline(control):
    baseline = tiny_pisr(path=CONFIGS / "ablations/baseline.yaml")
    assert control.state_dict().keys() == baseline.state_dict().keys()


def test_both_predictions_are_one_and_their_losses_too(control):
    control.train()
    losses = control(batch())
    assert losses["loss_ce_final"] > 0
    for name in ("loss_ce", "loss_mask", "loss_dice"):
        torch.testing.assert_close(losses[f"{name}_initial"], 0.5 * losses[f"{name}_final"])


def test_there_is_nothing_to_look_at(control):
    with pytest.raises(InputError, match="FEEDBACK is 'none'"), recorded_internals(control):
        pass


def given(seed):
    return [image_only(sample(seed, 64, 96), height=64, width=96)]


@pytest.fixture(scope="module")
def pisr():
    model = tiny_pisr().eval()
    wake(model, std=0.3)
    return model


@torch.no_grad()
def scores(model, seed):
    return model(given(seed))[0]["sem_seg"]


def test_swapped_encodings_are_those_of_the_image_before(pisr):
    """Replacing the encoder's output by hand gives the same for each image; afterwards all is as before."""
    encoder, encoded = predictor_of(pisr).pisr.encoder, {}
    plain = {}
    for seed in (1, 2, 3):
        handle = encoder.register_forward_hook(lambda m, i, out, s=seed: encoded.update({s: out}))
        plain[seed] = scores(pisr, seed)
        handle.remove()
    with swapped_encodings(pisr, lambda: scores(pisr, 1)):
        swapped = {seed: scores(pisr, seed) for seed in (2, 3)}
    for seed in (2, 3):
        handle = encoder.register_forward_hook(lambda m, i, output, s=seed: encoded[s - 1])
        assert torch.equal(scores(pisr, seed), swapped[seed])
        handle.remove()
        assert not torch.allclose(swapped[seed], plain[seed])
        assert torch.equal(scores(pisr, seed), plain[seed])


def test_the_first_prediction_of_a_model_is_not_its_final_one(pisr):
    final = scores(pisr, 1)
    with first_prediction(pisr):
        initial = scores(pisr, 1)
    assert not torch.allclose(initial, final)
    assert torch.equal(scores(pisr, 1), final)


def test_a_model_without_pisr_cannot_be_probed():
    with pytest.raises(InputError, match="has no PISR"):
        predictor_of(tiny_pisr(path=BASELINE))
