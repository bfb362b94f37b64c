"""PISR on a GPU in half precision against float32 on the CPU, forward and backward."""

import copy

import pytest
import torch

from tests.pisr_data import VARIANTS, build, prediction, relative_error, run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible")

# Half precision's rounding of the features and of O_f, and what the norms make of it.
TOLERANCE = {torch.float16: 0.02, torch.bfloat16: 0.06}


def values_and_gradients(module, given, valid_pixels, dtype):
    """F', q' and all gradients, as float32 on the CPU; `dtype` of autocast, None without."""
    leaves = {name: value.clone().requires_grad_() for name, value in given.items()}
    with torch.autocast(given["features"].device.type, dtype=dtype, enabled=dtype is not None):
        features = leaves["features"] if dtype is None else leaves["features"].to(dtype)
        result = run(module, {**leaves, "features": features}, valid_pixels)
    values = {"F'": result.features.on_pixels(), "q'": result.queries}
    sum(value.float().square().mean() for value in values.values()).backward()
    leaves |= dict(module.named_parameters())
    gradients = {name: leaf.grad.float().cpu() for name, leaf in leaves.items() if leaf.grad is not None}
    return {name: value.detach().float().cpu() for name, value in values.items()}, gradients


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("variant", ["default", "implicit", "constant", "l2_l2"])
def test_autocast_on_the_gpu_is_float32_on_the_cpu(variant, dtype, padded):
    given = {name: value.float() for name, value in prediction(size=(12, 10)).items()}
    valid_pixels = None
    if padded:
        valid_pixels = torch.ones(2, 1, 12, 10, dtype=torch.bool)
        valid_pixels[0, :, 8:] = False
    module = build(**VARIANTS[variant])
    on_gpu = copy.deepcopy(module).cuda()
    expected, expected_gradients = values_and_gradients(module, given, valid_pixels, None)
    found, gradients = values_and_gradients(
        on_gpu,
        {name: value.cuda() for name, value in given.items()},
        valid_pixels if valid_pixels is None else valid_pixels.cuda(),
        dtype,
    )
    wrong = {name: relative_error(found[name], expected[name]) for name in found}
    assert not {name: error for name, error in wrong.items() if error > TOLERANCE[dtype]}
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        assert gradient.isfinite().all(), name
        # by direction: single entries near zero may be off by more than their size
        other = expected_gradients[name].flatten()
        assert torch.cosine_similarity(gradient.flatten(), other, dim=0) > 0.98, name


def test_float32_on_the_gpu_is_float32_on_the_cpu():
    given = {name: value.float() for name, value in prediction().items()}
    module = build()
    on_gpu = copy.deepcopy(module).cuda()
    expected, expected_gradients = values_and_gradients(module, given, None, None)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # TF32 is no float32
        found, gradients = values_and_gradients(
            on_gpu, {name: value.cuda() for name, value in given.items()}, None, None
        )
    for one, other in ((found, expected), (gradients, expected_gradients)):
        assert not {name: one[name] for name in one if relative_error(one[name], other[name]) > 5e-3}
