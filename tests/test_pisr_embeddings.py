"""F' folded into the mask embeddings: the masks of the map, the same bits at zero, half precision, memory."""

import torch

from pisr_maskformer.attention import AffineFeatures
from pisr_maskformer.embeddings import FoldedEmbeddings, MapEmbeddings
from tests.pisr_data import build, prediction, relative_error, run
from tools.benchmarks.measure import peak_memory
from tools.benchmarks.pisr import Sizes, ways
from tools.benchmarks.plain_pisr import unfolded


def folded(dtype=torch.float64, scale=1.0):
    torch.manual_seed(0)
    features, matrix, offset = torch.randn(2, 8, 3, 4), torch.randn(2, 8, 8), torch.randn(2, 8)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    residual = AffineFeatures(scale * matrix.to(wide), scale * offset.to(wide))
    return FoldedEmbeddings(features.to(dtype), residual), torch.randn(2, 5, 8).to(dtype)


def test_by_hand():
    # F = (1, 2) at the only pixel; A F + c = (2 + 1, 1 + 0) = (3, 1): F' = (4, 3)
    residual = AffineFeatures(torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]), torch.tensor([[1.0, 0.0]]))
    embeddings = FoldedEmbeddings(torch.tensor([1.0, 2.0]).view(1, 2, 1, 1), residual)
    assert embeddings.on_pixels().flatten().tolist() == [4.0, 3.0]
    assert embeddings.masks(torch.tensor([[[1.0, 10.0], [0.0, 1.0]]])).flatten().tolist() == [34.0, 3.0]


def test_masks_are_those_of_the_map():
    embeddings, queries = folded()
    expected = torch.einsum("bqc,bchw->bqhw", queries, embeddings.on_pixels())
    torch.testing.assert_close(embeddings.masks(queries), expected, rtol=1e-12, atol=1e-12)
    of_map = MapEmbeddings(embeddings.on_pixels()).masks(queries)
    torch.testing.assert_close(of_map, expected, rtol=1e-12, atol=1e-12)


def test_masks_without_a_residual_are_the_base_networks_bit_for_bit():
    for dtype in (torch.float32, torch.bfloat16):
        embeddings, queries = folded(dtype, scale=0.0)
        queries[0, 0] = -0.0
        expected = torch.einsum("bqc,bchw->bqhw", queries, embeddings.features)
        assert torch.equal(embeddings.masks(queries), expected)


def test_masks_in_bfloat16_are_close_to_float32():
    given = {name: value.float() for name, value in prediction(size=(12, 10)).items()}
    module, mask_embeddings = build(), torch.randn(2, 6, 64, generator=torch.Generator().manual_seed(0))
    reference = run(module, given).features.masks(mask_embeddings)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = {**given, "features": given["features"].bfloat16().requires_grad_()}
        masks = run(module, half).features.masks(mask_embeddings.bfloat16())
    assert masks.dtype == torch.bfloat16 and relative_error(masks.float(), reference) < 0.03
    masks.float().square().mean().backward()
    assert half["features"].grad.isfinite().all()
    assert all(p.grad.isfinite().all() for name, p in module.named_parameters() if p.grad is not None)


def test_unfolded_evaluation_is_the_same():
    given = prediction()
    for variant in ({}, {"suppression": "none"}, {"relation": "constant"}):
        one = run(build(**variant).double(), given)
        other = run(unfolded(build(**variant).double()), given)
        assert isinstance(other.features, MapEmbeddings) and isinstance(one.features, FoldedEmbeddings)
        torch.testing.assert_close(one.features.on_pixels(), other.features.on_pixels())
        torch.testing.assert_close(one.queries, other.queries)


def test_memory_of_a_forward_and_backward_pass():
    """In sizes of F: two gradients, their sum, and region maps; unfolded, F_pan, its norm and F' too."""
    sizes = Sizes(side=512, queries=20, classes=20, channels=64)
    features = 4 * 64 * 128 * 128
    measured = {name: peak_memory(step) / features for name, step in ways(sizes, "cpu", None).items()}
    assert measured["folded"] < 4.3 < 6 < measured["unfolded"]
