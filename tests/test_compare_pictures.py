"""tools/compare.py: images, names and maps of all kinds, and the colours of its pictures."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data.catalog import Metadata

from mask_former.data.catalog import panoptic_metadata
from mask_former.drawing import segment_colors
from pisr_maskformer.visualization.differences import PanopticMap
from tests.comparison_data import (
    Saved,
    compared_scenes,
    halves,
    page_data,
    run,
    save_predictions,
    write_photo,
)
from tests.evaluation_data import CAT, DOG, ROAD, SCENES, SKY, metadata
from tools.comparison.pictures import Painter, shade_numbers, shown_size

NASTY = ('it\'s "a" <b>&.png', "雪 $x$.jpg", "percent%20#hash?.png")


@pytest.fixture
def world(tmp_path):
    with compared_scenes(tmp_path) as folder:
        yield folder


def test_a_folder_of_images_without_truth(world, capsys):
    photos = world / "photos"
    sizes = {NASTY[0]: (40, 60), NASTY[1]: (90, 30), NASTY[2]: (7, 9)}
    for name, size in sizes.items():
        write_photo(photos / name, *size, grey=name == NASTY[0])
    for side, classes in (("baseline", {1: SKY, 2: ROAD}), ("pisr", {1: SKY, 2: CAT})):
        saved = [Saved(name, photos / name, halves(*size), dict(classes)) for name, size in sizes.items()]
        save_predictions(world / side, metadata(), saved)
    assert run(world, given=photos) == 0
    data = page_data(world / "out")
    assert data["scored"] is False
    assert sorted(image["name"] for image in data["images"]) == sorted(Path(name).stem for name in NASTY)
    assert all(image["changed"] == pytest.approx(0.5, abs=0.1) for image in data["images"])
    assert (world / "out/most_changed.jpg").is_file() and not (world / "out/metrics.md").exists()
    files = [path.name for path in (world / "out/images").iterdir()]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+", name) for name in files), "plain names, whatever the images'"


@pytest.mark.parametrize("count", [133, 150])
def test_many_classes(tmp_path, count):
    photo = write_photo(tmp_path / "photos/p.png", 60, 10 * count // 2)
    categories = [{"id": c, "name": f'class {c} "<&>', "isthing": int(c % 2)} for c in range(count)]
    classes = Metadata(**panoptic_metadata(categories))
    ids = np.kron(np.arange(1, count + 1), np.ones((60, 5))).astype(np.int32)[:, : 10 * count // 2]
    for side, shift in (("baseline", 0), ("pisr", 1)):
        found = {number: (number - 1 + shift) % count for number in np.unique(ids).tolist()}
        save_predictions(tmp_path / side, classes, [Saved(1, photo, ids, found)])
    assert run(tmp_path, given=tmp_path / "photos") == 0
    data = page_data(tmp_path / "out")
    assert len(data["classes"]) == count == len(data["images"][0]["classes"])
    assert data["images"][0]["changed"] == 1


@pytest.mark.parametrize("count", [0, 1, 200])
def test_maps_without_segments_of_one_pixel_and_of_two_hundred(world, count):
    photo = write_photo(world / "photos/p.png", 50, 80)
    ids = np.zeros((50, 80), np.int32)
    if count == 1:
        ids[20, 30] = 1
    if count == 200:
        ids = np.kron(np.arange(1, 201).reshape(10, 20), np.ones((5, 4))).astype(np.int32)
    classes = {number: CAT for number in range(1, count + 1)}
    save_predictions(world / "baseline", metadata(), [Saved(1, photo, np.zeros_like(ids), {})])
    save_predictions(world / "pisr", metadata(), [Saved(1, photo, ids, classes)])
    assert run(world, given=world / "photos") == 0
    (image,) = page_data(world / "out")["images"]
    assert image["classes"] == ([CAT] if count else [])
    assert image["changed"] == pytest.approx(float((ids > 0).mean()))


def test_a_known_segment_has_its_colour_and_a_thing_one_shade_everywhere():
    classes = metadata()
    truth = PanopticMap(SCENES[0][0], SCENES[0][1])
    rgb = np.full((60, 100, 3), 100, np.uint8)
    big = PanopticMap(
        cv2.resize(truth.ids.astype(np.float32), (100, 60), interpolation=0).astype(int), truth.segments
    )
    drawn = Painter(rgb, {"truth": big}, classes)("truth", (60, 100))
    sky = np.array(classes.stuff_colors[SKY])
    assert drawn[20, 97].tolist() == pytest.approx((sky / 2 + 50).tolist(), abs=1)

    two = PanopticMap(halves(4, 4), [{"id": 1, "category_id": CAT}, {"id": 2, "category_id": CAT}])
    swapped = PanopticMap(two.ids, two.segments[::-1])
    assert shade_numbers([two, two]) == [[0, 1], [0, 1]]
    assert shade_numbers([two, swapped]) == [[0, 1], [1, 0]], "the order of the list does not matter"
    another = PanopticMap(np.full((4, 4), 9), [{"id": 9, "category_id": DOG}])
    assert shade_numbers([two, another]) == [[0, 1], [0]]


def test_what_only_the_predictions_have_has_one_shade_in_both():
    cats = [{"id": 1, "category_id": CAT}, {"id": 2, "category_id": CAT}]
    truth_ids, both = np.zeros((4, 4), np.int32), halves(4, 4)
    truth_ids[:2] = 1
    truth = PanopticMap(truth_ids, cats[:1])
    assert shade_numbers([truth, PanopticMap(both, cats), PanopticMap(both, cats[::-1])]) == [
        [0],
        [0, 1],
        [1, 0],
    ]
    # nothing of the truth is there: the second map's cats are told apart from the first's, except a partner
    lower = np.where(both == 2, 2, 0)
    upper_and_lower = PanopticMap(3 - both, cats)
    nowhere = PanopticMap(np.zeros_like(both), [])
    assert shade_numbers([nowhere, PanopticMap(lower, cats[1:]), upper_and_lower]) == [[], [0], [0, 1]]
    # a cat whose place in the truth another one has is no partner of that one's cat in the baseline
    third = np.array([[1, 1, 1, 3]] * 4)
    three = PanopticMap(third, [cats[0], {"id": 3, "category_id": CAT}])
    one = PanopticMap(np.ones((4, 4), np.int32), cats[:1])
    assert shade_numbers([one, one, three]) == [[0], [0], [0, 1]]


def test_shades_can_be_chosen():
    colors = [[200, 40, 40], [0, 0, 200]]
    in_order = segment_colors([0, 0, 1, 0], colors)
    assert segment_colors([0, 0, 1, 0], colors, [2, 0, 0, 1]) == [
        in_order[3],
        in_order[0],
        (0, 0, 200),
        in_order[1],
    ]


def test_sizes_on_the_page():
    assert shown_size(6, 10) == (307, 512) and shown_size(3000, 1500) == (1024, 512)
    assert shown_size(480, 640) == (480, 640) and shown_size(1, 4000) == (1, 1024)
