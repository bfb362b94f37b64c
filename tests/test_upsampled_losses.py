"""The memory-saving mask losses are the plain ones of upsampled logits, and so are their gradients."""

import pytest
import torch
from torch import Tensor

from mask_former import upsampled_losses
from mask_former.upsampled_losses import chunked, upsampled_mask_losses
from tools.benchmarks.measure import peak_memory
from tools.benchmarks.plain_criterion import plain_mask_losses as plain

SIZES = pytest.mark.parametrize(
    ("small", "large"),
    [((4, 6), (16, 24)), ((3, 5), (7, 4)), ((4, 4), (4, 4)), ((8, 8), (3, 3)), ((3, 1), (9, 2))],
)


def pairs(
    number: int, small: tuple[int, int], large: tuple[int, int], scale: float = 3.0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    logits = scale * torch.randn((number, *small), generator=generator, dtype=torch.float64)
    return logits, torch.rand((number, *large), generator=generator) > 0.5


def ours(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Of one prediction of one image, query by query: as the plain form takes them."""
    every = torch.arange(len(logits))
    focal, dice = upsampled_mask_losses([logits[None]], [masks], [[(every, every)]])
    return focal[0], dice[0]


@SIZES
@pytest.mark.parametrize("weights", [(20.0, 1.0), (1.0, 0.0), (0.0, 1.0)], ids=["both", "focal", "dice"])
def test_values_and_gradients(
    small: tuple[int, int], large: tuple[int, int], weights: tuple[float, float]
) -> None:
    values, gradients = [], []
    for losses in (ours, plain):
        logits, masks = pairs(3, small, large)
        focal, dice = losses(logits.requires_grad_(), masks)
        (weights[0] * focal + weights[1] * dice).backward()
        values.append(torch.stack((focal, dice)).detach())
        gradients.append(logits.grad)
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_gradient_by_finite_differences() -> None:
    logits, masks = pairs(2, (2, 3), (5, 6), scale=1.0)
    assert torch.autograd.gradcheck(lambda x: ours(x, masks), (logits.requires_grad_(),))


@pytest.mark.parametrize("pixels_at_once", [1, 16 * 24, 2 * 16 * 24])
def test_the_number_of_masks_at_once_does_not_matter(
    monkeypatch: pytest.MonkeyPatch, pixels_at_once: int
) -> None:
    logits, masks = pairs(5, (4, 6), (16, 24))
    whole = logits.clone().requires_grad_()
    sum(ours(whole, masks)).backward()
    monkeypatch.setitem(upsampled_losses.PIXELS_AT_ONCE, "cpu", pixels_at_once)
    parts = logits.clone().requires_grad_()
    sum(ours(parts, masks)).backward()
    torch.testing.assert_close(parts.grad, whole.grad)


def test_no_pair_is_zero_and_keeps_the_graph() -> None:
    logits = torch.zeros(3, 4, 6, requires_grad=True)
    focal, dice = ours(logits[:0], torch.zeros(0, 16, 24, dtype=torch.bool))
    assert (focal.item(), dice.item()) == (0, 0)
    (focal + dice).backward()
    assert torch.equal(logits.grad, torch.zeros(3, 4, 6))


def test_certain_mistakes_have_finite_losses_and_gradients() -> None:
    logits = torch.tensor([[[-300.0, 300.0]]], requires_grad=True)
    focal, dice = ours(logits, torch.tensor([[[True, False]]]))
    (focal + dice).backward()
    assert focal.item() == pytest.approx((0.25 * 300 + 0.75 * 300) / 2)
    assert dice.isfinite() and logits.grad.isfinite().all()


def test_without_gradient_nothing_is_kept() -> None:
    logits, masks = pairs(3, (4, 6), (16, 24))
    with torch.no_grad():
        focal, dice = ours(logits, masks)
    assert not focal.requires_grad
    torch.testing.assert_close((focal, dice), plain(logits, masks))


def test_what_is_kept_for_the_gradient_has_the_small_size() -> None:
    kept: list[int] = []
    logits, masks = pairs(6, (5, 5), (80, 80))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        ours(logits.requires_grad_(), masks)
    assert sum(kept) == 2 * logits.numel()


def several(
    counts: tuple[int, ...], queries: int = 5, predictions: int = 3
) -> tuple[list[Tensor], list[Tensor], list[list[tuple[Tensor, Tensor]]]]:
    """Predictions of some images, targets, and pairs that differ from prediction to prediction."""
    generator = torch.Generator().manual_seed(7)
    logits = [
        3 * torch.randn((len(counts), queries, 4, 6), generator=generator, dtype=torch.float64)
        for _ in range(predictions)
    ]
    masks = [torch.rand((count, 16, 24), generator=generator) > 0.5 for count in counts]
    pairs = [
        [
            (
                torch.randperm(queries, generator=generator)[:count],
                torch.randperm(count, generator=generator)[:queries],
            )
            for count in counts
        ]
        for _ in range(predictions)
    ]
    return logits, masks, pairs


@pytest.mark.parametrize("at_once", [1, 3, 100], ids=lambda count: f"{count} at once")
@pytest.mark.parametrize("counts", [(3,), (2, 0, 7), (0, 0)])
def test_several_predictions_and_images(
    monkeypatch: pytest.MonkeyPatch, counts: tuple[int, ...], at_once: int
) -> None:
    """Any two gradients for each prediction, none for what is not matched; images share a chunk."""
    monkeypatch.setitem(upsampled_losses.PIXELS_AT_ONCE, "cpu", at_once * 16 * 24)
    logits, masks, pairs = several(counts)
    factors = torch.tensor([[20.0, 1.0], [0.0, 3.0], [-2.0, 0.5]], dtype=torch.float64)
    found = [value.clone().requires_grad_() for value in logits]
    focal, dice = upsampled_mask_losses(found, masks, pairs)
    (factors * torch.stack((focal, dice), dim=1)).sum().backward()
    for number, (value, matched) in enumerate(zip(logits, pairs, strict=True)):
        value.requires_grad_()
        chosen = torch.cat([of_image[queries] for of_image, (queries, _) in zip(value, matched, strict=True)])
        true = torch.cat([mask[segments] for mask, (_, segments) in zip(masks, matched, strict=True)])
        expected = torch.stack(plain(chosen, true))
        torch.testing.assert_close(torch.stack((focal[number], dice[number])), expected)
        (factors[number] * expected).sum().backward()
        torch.testing.assert_close(found[number].grad, value.grad)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (1, [[(0, 1)], [(0, 1)], [(2, 1)], [(2, 1)], [(2, 1)]]),
        (3, [[(0, 2), (2, 1)], [(2, 2)]]),
        (4, [[(0, 2), (2, 2)], [(2, 1)]]),
        (9, [[(0, 2), (2, 3)]]),
    ],
)
def test_chunks_are_full_and_keep_the_order(size: int, expected: list[list[tuple[int, int]]]) -> None:
    pairs = [(torch.arange(count), torch.arange(10, 10 + count)) for count in (2, 0, 3)]
    chunks = list(chunked(pairs, size))
    assert [[(image, len(queries)) for image, queries, _ in chunk] for chunk in chunks] == expected
    flat = [part for chunk in chunks for part in chunk]
    assert torch.cat([queries for _, queries, _ in flat]).tolist() == [0, 1, 0, 1, 2]
    assert torch.cat([segments for _, _, segments in flat]).tolist() == [10, 11, 10, 11, 12]


def test_a_prediction_without_gradient_among_others() -> None:
    logits, masks, pairs = several((2,), predictions=2)
    logits[1].requires_grad_()
    focal, dice = upsampled_mask_losses(logits, masks, pairs)
    (focal + dice).sum().backward()
    assert logits[0].grad is None and logits[1].grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_judged_in_float32(dtype: torch.dtype) -> None:
    """Losses of the rounded logits; their gradient, in the logits' type, is the rounded one."""
    logits, masks = pairs(3, (4, 6), (16, 24))
    half = logits.to(dtype).requires_grad_()
    same = half.detach().float().requires_grad_()
    for value in (half, same):
        focal, dice = ours(value, masks)
        assert focal.dtype == dice.dtype == torch.float32
        (20 * focal + dice).backward()
    torch.testing.assert_close(half.grad, same.grad.to(dtype))


def test_float32_is_as_exact_as_it_can_be() -> None:
    """Beside the plain form in float64, with logits from undecided to certain, right and wrong."""
    logits, masks = pairs(4, (20, 20), (80, 80), scale=8.0)
    results = []
    for losses, value in ((ours, logits.float()), (plain, logits.float().double())):
        focal, dice = losses(value.requires_grad_(), masks)
        (20 * focal + dice).backward()
        results.append((focal.double(), dice.double(), value.grad.double()))
    found, expected = results
    torch.testing.assert_close(found[:2], expected[:2], rtol=1e-6, atol=0)
    assert (found[2] - expected[2]).abs().max() < 1e-6 * expected[2].abs().max()


def test_memory_does_not_grow_with_the_number_of_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    """10, 100 and 1000 targets for 100 queries: twice the prediction, its gradient, and some buffers."""
    monkeypatch.setitem(upsampled_losses.PIXELS_AT_ONCE, "cpu", 20 * 64 * 64)
    logits = torch.randn((1, 100, 16, 16), generator=torch.Generator().manual_seed(0)).requires_grad_()
    own, buffers = logits.numel() * 4, 6 * 20 * 64 * 64 * 4
    peaks = {}
    for count in (10, 100, 1000):
        masks = torch.rand((count, 64, 64)) > 0.5
        pair = (torch.arange(min(100, count)), torch.arange(max(0, count - 100), count))

        def step(masks: Tensor = masks, pair: tuple[Tensor, Tensor] = pair) -> None:
            focal, dice = upsampled_mask_losses([logits], [masks], [[pair]])
            (focal + dice).sum().backward()
            logits.grad = None

        step()
        peaks[count] = peak_memory(step)
    assert peaks[10] < peaks[100] < 4.2 * own + 1.2 * buffers
    assert peaks[1000] == pytest.approx(peaks[100], abs=1000)


def test_compiling_that_fails_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("no compiler\nand more")

    monkeypatch.setattr(torch, "compile", lambda function, **options: broken)
    upsampled_losses._compiled_terms.cache_clear()
    logits, masks, matched = several((2, 3))
    expected = upsampled_mask_losses(logits, masks, matched)
    found = [upsampled_mask_losses(logits, masks, matched, compiled=True) for _ in range(2)]
    upsampled_losses._compiled_terms.cache_clear()
    for one in found:
        torch.testing.assert_close(one, expected)
    assert [record.getMessage() for record in caplog.records] == [
        "the mask losses cannot be compiled here and go on without: no compiler"
    ]


def test_what_is_compiled_is_the_same_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced as torch.compile traces it, for any size, without a C++ compiler; and traced only twice."""
    graphs = []
    real = torch.compile

    def traced(function: object, **options: object) -> object:
        return real(function, backend=lambda graph, inputs: graphs.append(graph) or graph.forward, **options)

    monkeypatch.setattr(torch, "compile", traced)
    torch._dynamo.reset()
    upsampled_losses._compiled_terms.cache_clear()
    results = {}
    for compiled in (False, True):
        for large in ((16, 24), (8, 12)):
            for counts in ((3,), (4, 2)):
                logits, _, matched = several(counts)
                masks = [
                    torch.rand((n, *large), generator=torch.Generator().manual_seed(n)) > 0.5 for n in counts
                ]
                focal, dice = upsampled_mask_losses(
                    [value.requires_grad_() for value in logits], masks, matched, compiled=compiled
                )
                (20 * focal + dice).sum().backward()
                results[compiled, large, counts] = [focal, dice, *(value.grad for value in logits)]
    upsampled_losses._compiled_terms.cache_clear()
    torch._dynamo.reset()
    for compiled, *key in list(results):
        if compiled:
            torch.testing.assert_close(results[(True, *key)], results[(False, *key)])
    assert 1 <= len(graphs) <= 2
