"""All predictions judged in one go: the plain losses, one wait for the device, memory that does not grow."""

import pytest
import torch
from torch import Tensor

from mask_former import matcher as matcher_module
from mask_former.criterion import SetCriterion, by_layer, weigh
from mask_former.matcher import Target
from mask_former.predictor import Predictions
from tests.synchronisation import Synchronisations
from tests.test_criterion import criterion, outputs, target
from tools.benchmarks.measure import peak_memory
from tools.benchmarks.plain_criterion import plain_losses


def step_of(
    counts: list[int], layers: int = 3, seed: int = 0
) -> tuple[SetCriterion, Predictions, list[Target]]:
    """A criterion, predictions of some images and as many targets of each as `counts` says."""
    targets = [target([i % 2 for i in range(count)], seed=i) for i, count in enumerate(counts)]
    module = criterion(num_earlier_layers=layers - 1, no_object_weight=0.3)
    return module, outputs(len(counts), layers=layers), targets


def gradients(prediction: Predictions) -> list[Tensor]:
    every = by_layer(prediction).values()
    found = [one[name].grad for one in every for name in ("pred_logits", "pred_masks")]
    for one in every:
        one["pred_logits"].grad = one["pred_masks"].grad = None
    return found


@pytest.mark.parametrize("counts", [[3], [2, 0, 6], [0, 0]])  # 6 > 4 queries
def test_losses_and_gradients_are_the_plain_ones(counts: list[int]) -> None:
    module, prediction, targets = step_of(counts)
    totals = module.totals([one["labels"] for one in targets], num_queries=4)
    results = []
    for losses in (module(prediction, targets), plain_losses(module, by_layer(prediction), targets, totals)):
        sum(weigh(losses, module.weight_dict).values()).backward()
        results.append((losses, gradients(prediction)))
    assert list(results[0][0]) == list(results[1][0])
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])


@pytest.mark.parametrize("counts", [[3], [2, 0, 6], [0, 0]])
def test_a_step_waits_for_the_device_once(monkeypatch: pytest.MonkeyPatch, counts: list[int]) -> None:
    """For the costs; what the matcher then does with them is on the CPU, and not looked at."""
    module, prediction, targets = step_of(counts)
    copies, match, to_host = [], module.matcher.match, matcher_module.to_host
    monkeypatch.setattr(matcher_module, "to_host", lambda costs: copies.append(costs) or to_host(costs))
    seen = Synchronisations()
    pairs = match([prediction, *prediction["aux_outputs"]], targets)
    with seen:
        module.matcher.costs([prediction, *prediction["aux_outputs"]], targets)
        monkeypatch.setattr(module.matcher, "match", lambda *given: pairs)
        sum(weigh(module(prediction, targets), module.weight_dict).values()).backward()
    assert not seen.operations
    copies.clear()
    monkeypatch.undo()
    monkeypatch.setattr(matcher_module, "to_host", lambda costs: copies.append(costs) or to_host(costs))
    module(prediction, targets)
    assert len(copies) == 1


def test_what_waits_is_seen() -> None:
    values = torch.arange(3.0, requires_grad=True)
    for wait in (
        lambda: values.sum().item(),
        lambda: bool(values.isfinite().all()),
        lambda: values[values > 1],
        lambda: values.nonzero(),
        lambda: torch.zeros(3).index_put_((values > 1,), torch.tensor(1.0)),
    ):
        with Synchronisations() as seen:
            wait()
        assert seen.operations
    with Synchronisations() as seen:
        (values[torch.tensor([0, 2])] * values[:2]).sum().backward()
    assert not seen.operations


def test_memory_does_not_grow_with_the_number_of_targets() -> None:
    """From as many as there are queries on, but by some numbers for each: costs, classes and indices."""
    peaks = {}
    for count in (300, 1000):
        module, prediction, targets = step_of([count], layers=2)

        def step(
            given: tuple[SetCriterion, Predictions, list[Target]] = (module, prediction, targets),
        ) -> None:
            sum(given[0](*given[1:]).values()).backward()
            gradients(given[1])

        step()
        peaks[count] = peak_memory(step)
    numbers_of_a_target = 2 * 4 * 4  # in two predictions, for four queries each, a few copies
    assert peaks[1000] - peaks[300] < 700 * numbers_of_a_target * 4
