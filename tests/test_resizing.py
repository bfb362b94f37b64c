"""Results with resizing on the way equal the definition on full-size masks, in little memory."""

import pytest
import torch

from mask_former import resizing as resizing_module
from mask_former.inference import (
    instance_inference,
    panoptic_inference,
    semantic_inference,
    semantic_inference_then_resize,
)
from mask_former.resizing import Axis, Resizing, bilinear_weights
from tests.tiny import image_only, sample, tiny_model
from tools.benchmarks import inference as benchmark
from tools.benchmarks import plain_inference as plain
from tools.benchmarks.inference import predictions
from tools.benchmarks.measure import peak_memory

CLASSES, THINGS = 12, range(5, 12)
RESIZINGS = {
    "smaller": Resizing((96, 128), (90, 121), (61, 83)),
    "larger": Resizing((96, 128), (96, 100), (150, 157)),
    "the image's": Resizing((64, 96), (51, 90), (51, 90)),
    "nothing to do": Resizing((64, 96), (64, 96), (64, 96)),
    "of one pixel": Resizing((32, 32), (1, 3), (1, 1)),
}
# elements at a time: one query or few rows, some, all
CHUNKS = [1, 30_000, 2**25]


@pytest.fixture(params=list(RESIZINGS.values()), ids=list(RESIZINGS))
def way(request: pytest.FixtureRequest) -> Resizing:
    return request.param


@pytest.fixture(params=CHUNKS)
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(resizing_module, "CPU_CHUNK", request.param)
    return request.param


def blobs(way: Resizing, queries: int = 17, kept: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    logits, masks = predictions(queries, kept, CLASSES, way)
    return logits, masks + 4  # larger blobs, which hide one another


@pytest.mark.parametrize("thresholds", [(0.7, 0.8), (0.0, 0.0), (0.0, 0.5), (0.999999, 0.0)])
def test_panoptic_is_the_plain_one_bit_for_bit(
    way: Resizing, chunk: int, thresholds: tuple[float, float]
) -> None:
    logits, masks = blobs(way)
    score, overlap = thresholds
    ids, segments = panoptic_inference(logits, masks, THINGS, score, overlap, way)
    plain_ids, plain_segments = plain.panoptic(logits, plain.resize(masks, way), THINGS, score, overlap)
    assert torch.equal(ids, plain_ids) and segments == plain_segments


def test_of_equal_scores_the_first_query_wins(chunk: int) -> None:
    """Queries 0, 2 and 4 are one and the same, and so are 1 and 3; each is more certain on one half."""
    way = RESIZINGS["smaller"]
    halves = torch.full((2, 24, 32), -9.0)
    halves[0, :, :16], halves[1, :, 16:] = 9, 9
    logits = torch.zeros(5, CLASSES + 1)
    logits[:, 7] = 9
    ids, segments = panoptic_inference(logits, halves[[0, 1, 0, 1, 0]], THINGS, 0.5, 0.5, way)
    assert [segment["id"] for segment in segments] == [1, 2]
    assert ids[:, 0].eq(1).all() and ids[:, -1].eq(2).all()


def test_panoptic_brings_only_kept_queries_to_size(monkeypatch: pytest.MonkeyPatch) -> None:
    way = RESIZINGS["smaller"]
    logits, masks = blobs(way, queries=100, kept=9)
    resized: list[int] = []
    plain_resize = resizing_module.bilinear

    def counted(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        resized.append(len(maps) if size == way.padded else 0)
        return plain_resize(maps, size)

    monkeypatch.setattr(resizing_module, "bilinear", counted)
    panoptic_inference(logits, masks, THINGS, 0.7, 0.8, way)
    assert sum(resized) == 9


def test_semantic_scores_are_the_plain_ones(way: Resizing, chunk: int) -> None:
    logits, masks = blobs(way)
    first = semantic_inference(logits, masks, way)
    torch.testing.assert_close(first, plain.semantic(logits, plain.resize(masks, way)), atol=1e-5, rtol=0)
    mixed = semantic_inference_then_resize(logits, masks, way)
    expected = plain.to_result(plain.semantic(logits, plain.to_padded(masks, way)), way)
    torch.testing.assert_close(mixed, expected, atol=1e-5, rtol=0)


def test_instances_are_the_plain_ones(way: Resizing, chunk: int) -> None:
    logits, masks = blobs(way)
    found = instance_inference(logits, masks, THINGS, 40, way)
    expected = plain.instances(logits, plain.resize(masks, way), THINGS, 40)
    assert found.image_size == way.size
    assert found.pred_classes.tolist() == [label for label, _, _, _ in expected]
    assert found.scores.tolist() == pytest.approx([score for _, score, _, _ in expected], rel=1e-5)
    assert found.pred_boxes.tensor.tolist() == [box for _, _, _, box in expected]
    for mask, (_, _, plain_mask, _) in zip(found.pred_masks, expected, strict=True):
        assert torch.equal(mask, plain_mask)


def test_weights_of_an_axis_and_what_they_reach() -> None:
    """Twice as many: each new pixel lies a quarter from an old one; the outer ones repeat the border."""
    weights = bilinear_weights(3, 6)
    assert weights.tolist() == [
        [1, 0, 0],
        [0.75, 0.25, 0],
        [0.25, 0.75, 0],
        [0, 0.75, 0.25],
        [0, 0.25, 0.75],
        [0, 0, 1],
    ]
    axis = Axis(weights, torch.device("cpu"))
    assert [axis.sources(start, start + 2) for start in (0, 2, 4)] == [(0, 2), (0, 3), (1, 3)]
    assert axis.sources(4, 100) == (1, 3)
    assert not axis.is_identity and Axis(torch.eye(3), torch.device("cpu")).is_identity


@pytest.mark.parametrize("kept", [20, 100])
def test_panoptic_keeps_some_maps_not_one_for_each_query(kept: int) -> None:
    way = Resizing((384, 512), (384, 500), (380, 506))
    logits, masks = predictions(100, kept, CLASSES, way)
    one_map = 4 * 384 * 512
    # largest score, winner, their successors, and two queries on the way
    assert peak_memory(lambda: panoptic_inference(logits, masks, THINGS, 0.7, 0.8, way)) < 16 * one_map


def test_semantic_keeps_little_beside_the_scores() -> None:
    way = Resizing((384, 512), (384, 500), (380, 506))
    logits, masks = predictions(100, 20, 150, way)
    returned = 150 * 4 * 380 * 506
    assert peak_memory(lambda: semantic_inference(logits, masks, way)) < 1.2 * returned
    assert peak_memory(lambda: semantic_inference_then_resize(logits, masks, way)) < 1.35 * returned


def test_results_of_a_model_are_the_plain_ones() -> None:
    """The whole way: a batch of two sizes, each padded to the larger and resized to its own."""
    test = "MODEL.MASK_FORMER.TEST."
    names = ("SEMANTIC_ON", "PANOPTIC_ON", "INSTANCE_ON")
    model = tiny_model({test + name: True for name in names}).eval()
    batch = [image_only(sample(0, 64, 64), height=100, width=30), image_only(sample(1, 40, 50))]
    with torch.no_grad():
        images = model.preprocess(batch)
        outputs = model.sem_seg_head(model.backbone(images.tensor), images.image_sizes)
        results = model(batch)
    for i, (result, size) in enumerate(zip(results, [(100, 30), (40, 50)], strict=True)):
        way = Resizing((64, 64), images.image_sizes[i], size)
        logits, masks = outputs["pred_logits"][i], plain.resize(outputs["pred_masks"][i], way)
        thresholds = model.object_mask_threshold, model.overlap_threshold
        ids, segments = plain.panoptic(logits, masks, model.thing_ids, *thresholds)
        assert torch.equal(result["panoptic_seg"][0], ids) and result["panoptic_seg"][1] == segments
        torch.testing.assert_close(result["sem_seg"], plain.semantic(logits, masks), atol=1e-5, rtol=0)
        expected = plain.instances(logits, masks, model.thing_ids)
        assert result["instances"].pred_classes.tolist() == [label for label, _, _, _ in expected]


def test_the_benchmark_gets_the_same_results(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main(["--quick"])
    printed = capsys.readouterr().out
    assert printed.count("| True |") == 6 and "False" not in printed
