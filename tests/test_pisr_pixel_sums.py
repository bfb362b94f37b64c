"""The pass over pixels against plain sums: values, gradients, layouts, padding, precision, memory."""

import pytest
import torch

from pisr_maskformer import pixel_sums as module
from pisr_maskformer.moments import FeatureMoments
from pisr_maskformer.pixel_sums import PIECE, ROW, pixel_sums
from tools.benchmarks.measure import peak_memory

CHOSEN = torch.tensor([[3, 0], [1, 2]])


@pytest.fixture(autouse=True, params=[8, 4096], ids=["pieces", "one_piece"])
def piece(request, monkeypatch):
    """Pixels a piece: the maps here have 30."""
    monkeypatch.setattr(module, "PIECE", request.param)
    monkeypatch.setattr(module, "ROW", 1)


def inputs(channels=4, channels_last=False, dtype=torch.float64):
    """F 2×D×5×6, s of four queries, a factor, and padding that leaves a piece of the first image empty."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, channels, 5, 6, generator=generator, dtype=torch.float64) + 3
    maps = torch.rand(2, 4, 5, 6, generator=generator, dtype=torch.float64)
    factor = torch.rand(2, 1, 5, 6, generator=generator, dtype=torch.float64)
    valid = torch.ones(2, 1, 5, 6, dtype=torch.bool)
    valid[0, :, 2:] = False
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    return features.to(dtype).requires_grad_(), maps.requires_grad_(), factor.requires_grad_(), valid


def plain(features, maps, factor, valid, chosen=CHOSEN):
    """The same by PyTorch's own operations: sums, areas, mean, covariance."""
    inside = torch.ones_like(maps[:, :1]) if valid is None else valid.to(maps.dtype)
    under = torch.stack([image[rows] for image, rows in zip(maps, chosen, strict=True)]) * factor
    weights = torch.cat([maps, under], dim=1) * inside
    pixels = inside.sum((2, 3))
    mean = (features * inside).sum((2, 3)) / pixels
    apart = (features - mean[..., None, None]) * inside
    covariance = torch.einsum("bchw,bdhw->bcd", apart, apart) / pixels[..., None]
    return torch.einsum("bkhw,bdhw->bkd", weights, features), weights.sum((2, 3)), mean, covariance


def found(features, maps, factor, valid, chosen=CHOSEN):
    _, sums, areas, moments = pixel_sums(features, maps, valid, chosen, factor, moments=True)
    return sums, areas, moments.mean, moments.covariance


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("channels", "channels_last"), [(4, False), (4, True), (5, False), (1, False)])
def test_values_and_gradients_are_those_of_plain_sums(padded, channels, channels_last):
    features, maps, factor, valid = inputs(channels, channels_last)
    valid = valid if padded else None
    results = []
    for evaluate in (found, plain):
        values = evaluate(features, maps, factor, valid)
        generator = torch.Generator().manual_seed(1)
        weights = [torch.randn(value.shape, generator=generator, dtype=value.dtype) for value in values]
        total = sum((value * weight).sum() for value, weight in zip(values, weights, strict=True))
        results.append([*values, *torch.autograd.grad(total, [features, maps, factor])])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)
    assert results[0][4].stride() == features.stride()  # the gradient lies as the features do


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_gradient_of_whoever_goes_on_with_the_features_is_added(dtype):
    features, maps, *_ = inputs()
    features = features.detach().to(dtype).requires_grad_()
    maps = maps.detach().to(torch.promote_types(dtype, torch.float32))
    torch.manual_seed(2)
    weight = torch.randn_like(features)
    gradients = []
    for goes_on in (True, False):
        same, sums, *_ = pixel_sums(features, maps)
        assert torch.equal(same, features)
        total = sums.square().sum() + ((same if goes_on else features) * weight).sum()
        gradients.append(torch.autograd.grad(total, features)[0])
    torch.testing.assert_close(*gradients, rtol=0.01 if dtype == torch.bfloat16 else 1e-12, atol=1e-12)


def test_maps_and_factor_may_lie_transposed():
    features, maps, factor, valid = inputs()
    maps, factor = (each.detach().transpose(2, 3).contiguous().transpose(2, 3) for each in (maps, factor))
    given = [features, maps.requires_grad_(), factor.requires_grad_()]
    assert not maps.is_contiguous()
    gradients = [
        torch.autograd.grad(sum(value.square().sum() for value in evaluate(*given, valid)), given)
        for evaluate in (found, plain)
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_gradients_by_finite_differences():
    features, maps, factor, valid = inputs(channels=3)
    assert torch.autograd.gradcheck(
        lambda *given: found(*given, valid), (features, maps, factor), fast_mode=True
    )


@pytest.mark.parametrize("row", [1, 8])
@pytest.mark.parametrize("pixels", [1, 30, 8192, 25600])
def test_pieces_cover_all_pixels_once_and_are_of_about_one_size(pixels, row, monkeypatch):
    monkeypatch.setattr(module, "ROW", row)
    pieces = list(module._pieces(torch.empty(1, 1, 1, pixels)))
    assert [pixel for piece in pieces for pixel in range(pixels)[piece]] == list(range(pixels))
    sizes = [piece.stop - piece.start for piece in pieces]
    assert max(sizes) <= module.PIECE and all(size % row == 0 for size in sizes[:-1])
    assert len(sizes) == 1 or max(sizes) - pixels / len(sizes) < row + 1


def test_rows_divide_pieces():
    assert PIECE % ROW == 0


def test_by_hand():
    # pixels (1, 0), (3, 4); the mean is (2, 2), what is left (-1, -2), (1, 2)
    features = torch.tensor([[[[1.0, 3.0]], [[0.0, 4.0]]]])
    _, sums, areas, moments = pixel_sums(features, torch.tensor([[[[1.0, 0.5]]]]), moments=True)
    assert sums.tolist() == [[[2.5, 2.0]]] and areas.tolist() == [[1.5]]
    assert moments.mean.tolist() == [[2.0, 2.0]] and moments.covariance.tolist() == [[[1.0, 2.0], [2.0, 4.0]]]
    assert moments.pixels.tolist() == [2.0] and moments.squared_norm().tolist() == [13.0]  # (1 + 25) / 2
    mean, variance = moments.affine(torch.tensor([[[1.0, 1.0], [0.0, 2.0]]]), torch.tensor([[1.0, 0.0]]))
    # A F + c: (2, 0), (8, 8)
    assert mean.tolist() == [[5.0, 4.0]] and variance.tolist() == [[9.0, 16.0]]


def test_without_a_valid_pixel_all_is_zero_and_finite():
    features, maps, factor, valid = inputs()
    valid[1] = False
    values = found(features, maps, factor, valid)
    assert not any(value[1].any() for value in values)
    sum(value.sum() for value in values).backward()
    assert features.grad.isfinite().all() and not features.grad[1].any() and not maps.grad[1].any()


def test_moments_of_nearly_constant_features_survive_float32():
    """A difference of uncentred sums would lose them: 1000 squared is 1e6, the variance 1e-2."""
    torch.manual_seed(0)
    small = 0.1 * torch.randn(1, 4, 5, 6, dtype=torch.float64)
    *_, moments = pixel_sums((1000 + small).float(), torch.ones(1, 1, 5, 6), moments=True)
    truth = plain(1000 + small, small[:, :1], small[:, :1], None, chosen=CHOSEN[:1] * 0)[3]
    torch.testing.assert_close(moments.covariance.double(), truth, rtol=0.01, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_are_summed_in_float32_under_autocast_too(dtype):
    features, maps, factor, valid = inputs(dtype=dtype)
    wide = features.detach().float().requires_grad_()
    maps, factor = maps.detach().float().requires_grad_(), factor.detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = found(features, maps, factor, valid)
        gradient, of_maps = torch.autograd.grad(sum(value.sum() for value in half), [features, maps])
    full = found(wide, maps, factor, valid)
    expected = torch.autograd.grad(sum(value.sum() for value in full), [wide, maps])
    for one, other in zip(half, full, strict=True):
        assert one.dtype == torch.float32 and torch.equal(one, other)
    assert torch.equal(gradient, expected[0].to(dtype)) and torch.equal(of_maps, expected[1])


def test_nothing_as_large_as_the_features_is_kept(monkeypatch):
    """Forward: a piece at a time. Kept: sums alone. Backward: the gradient, and a piece at a time."""
    monkeypatch.setattr(module, "PIECE", 500)
    features = torch.randn(1, 64, 100, 100).requires_grad_()  # 2.44 MiB
    maps, factor = torch.rand(1, 10, 100, 100), torch.rand(1, 1, 100, 100)
    size, kept = 4 * features.numel(), []

    def forward():
        kept[:] = pixel_sums(features, maps, None, torch.arange(5)[None], factor, moments=True)

    assert peak_memory(forward) < 0.25 * size
    _, sums, _, moments = kept
    total = sums.sum() + moments.covariance.square().sum()
    assert peak_memory(lambda: torch.autograd.grad(total, features)) < 1.25 * size
    assert isinstance(moments, FeatureMoments)
