"""tools/compare.py on saved predictions: numbers, what is done again, refusals."""

import errno
import json
from unittest import mock

import panopticapi.evaluation as panopticapi
import pytest
from PIL import Image

from mask_former.data.catalog import dataset_ids, thing_ids
from mask_former.data.id_map import write_id_map
from mask_former.errors import InputError, run_cli
from tests.comparison_data import (
    NAME,
    compared_scenes,
    page_data,
    predictions,
    records_of,
    run,
    save_predictions,
)
from tests.evaluation_data import CAT, DOG, ROAD, SCENES, SKY, metadata, write_dataset
from tools.compare import main


@pytest.fixture
def world(tmp_path):
    with compared_scenes(tmp_path) as folder:
        yield folder


def reference_pq(folder, truth, predicted):
    """panopticapi's PQ (0..100) of some images, from files that it reads itself."""
    of_dataset = dataset_ids(metadata())
    things = thing_ids(metadata())
    categories = {of_dataset[c]: {"id": of_dataset[c], "isthing": int(c in things)} for c in of_dataset}
    pairs = []
    for number, ((ids, infos), saved) in enumerate(zip(truth, predicted, strict=True)):
        for side, pixels in (("gt", ids), ("pred", saved.ids)):
            (folder / side).mkdir(parents=True, exist_ok=True)
            write_id_map(folder / side / f"{number}.png", pixels)
        entry = {"image_id": number, "file_name": f"{number}.png"}
        area = {s["id"]: int((ids == s["id"]).sum()) for s in infos}
        true = [{**s, "category_id": of_dataset[s["category_id"]], "area": area[s["id"]]} for s in infos]
        found = [{"id": key, "category_id": of_dataset[c]} for key, c in saved.classes.items()]
        pairs.append(({**entry, "segments_info": true}, {**entry, "segments_info": found}))
    statistics = panopticapi.pq_compute_single_core(0, pairs, folder / "gt", folder / "pred", categories)
    return 100 * statistics.pq_average(categories, isthing=None)[0]["pq"]


def test_pq_of_each_image_and_of_all_is_panopticapis(world):
    assert run(world) == 0
    found = records_of(world / "out")
    saved = predictions(write_dataset(world))
    metrics = json.loads((world / "out/metrics.json").read_text())
    for side in ("baseline", "pisr"):
        for number, record in enumerate(found):
            expected = reference_pq(world / f"{side}{number}", [SCENES[number]], [saved[side][number]])
            assert record["pq"][side] == pytest.approx(expected), (side, number)
        everything = reference_pq(world / f"{side}_all", SCENES, saved[side])
        assert metrics[side]["PQ"] == pytest.approx(everything)
    # one scene is predicted perfectly; of the other the sky is right, a cat too many and a dog too few
    assert [record["pq"]["pisr"] for record in found] == pytest.approx([100, 100 / 3])


def test_delta_says_what_it_is_the_sum_of(world):
    run(world)
    metrics = json.loads((world / "out/metrics.json").read_text())
    gains = [metrics["pisr"][name] - metrics["baseline"][name] for name in ("PQ", "mIoU")]
    assert metrics["delta"] == {"value": pytest.approx(sum(gains)), "sum_of": ["PQ", "mIoU"]}
    table = (world / "out/metrics.md").read_text()
    assert "Δ = sum of the gains in PQ + mIoU; 2 images." in table
    assert "mIoU is that of the panoptic maps" in table and "No AP" in table
    assert f"| Δ | – | – | {sum(gains):.1f} |" in table


def test_miou_counts_pixels_without_a_prediction_as_wrong(world):
    ids = SCENES[0][0].copy()
    ids[:3, :5] = 0  # half of the sky, which covers 30 of the first scene's pixels, is not predicted
    saved = predictions(write_dataset(world))["pisr"]
    save_predictions(world / "pisr", metadata(), [saved[0]._replace(ids=ids), saved[1]])
    run(world)
    per_class = json.loads((world / "out/metrics.json").read_text())["per_class"]
    second = int((SCENES[1][0] == 5).sum())
    assert per_class["sky"]["pisr"]["IoU"] == pytest.approx(100 * (15 + second) / (30 + second))


def test_semantic_labels_give_miou_and_no_pq(tmp_path):
    with compared_scenes(tmp_path, without="pan_seg_file_name") as world:
        assert run(world) == 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["delta"]["sum_of"] == ["mIoU"] and "PQ" not in metrics["pisr"]
    assert metrics["per_class"]["road"] == {"baseline": {"IoU": 0.0}, "pisr": {"IoU": 100.0}}
    data = page_data(tmp_path / "out")
    assert data["scored"] is False and "truth" in data["images"][0]["pictures"]


def test_the_first_images_alone(world):
    assert run(world, "--first", 1) == 0
    assert [image["index"] for image in page_data(world / "out")["images"]] == [0]


def test_the_page_has_what_the_journal_has(world):
    run(world)
    images = page_data(world / "out")["images"]
    assert [image["delta"] for image in images] == pytest.approx(
        [record["pq"]["pisr"] - record["pq"]["baseline"] for record in records_of(world / "out")]
    )
    assert images[0]["classes"] == [SKY, ROAD, CAT, DOG]
    assert 0 < images[0]["changed"] < 1 and images[0]["heat"] is None
    for image in images:
        for file in image["pictures"].values():
            assert (world / "out" / file).is_file()
    assert (world / "out/gains.jpg").is_file()


def test_a_panel_shows_input_truth_and_both_sides(world):
    run(world)
    with Image.open(world / "out" / page_data(world / "out")["images"][0]["pictures"]["panel"]) as panel:
        assert panel.width / panel.height > 4, "four pictures of a 10×6 image"


def test_a_finished_comparison_is_not_done_again(world):
    run(world)
    picture = next((world / "out/images").glob("*_panel.jpg"))
    before = picture.stat().st_mtime_ns, (world / "out/index.html").read_text()
    assert run(world) == 0
    assert (picture.stat().st_mtime_ns, (world / "out/index.html").read_text()) == before
    assert len(records_of(world / "out")) == 2


def test_an_image_whose_pictures_are_gone_is_done_again(world):
    run(world)
    numbers = (world / "out/metrics.json").read_text()
    for picture in (world / "out/images").glob("00001_*"):
        picture.unlink()
    assert run(world) == 0
    assert len(list((world / "out/images").glob("00001_*_panel.jpg"))) == 1
    assert (world / "out/metrics.json").read_text() == numbers, "it counts once"


def test_a_full_disk_is_one_line_and_the_comparison_goes_on_later(world, capfd):
    def full(path, picture):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with mock.patch("tools.comparison.pictures.write_jpeg", full):
        assert run_cli(lambda: run(world)) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "no room to write" in errors[0]
    assert run(world) == 0 and len(records_of(world / "out")) == 2


def test_another_comparison_in_the_same_folder_is_refused(world):
    run(world)
    with pytest.raises(InputError, match="holds a comparison of other models, images or settings"):
        run(world, "--first", "1")


def test_images_that_cannot_be_compared_are_named_and_the_rest_go_on(world, capfd):
    saved = predictions(write_dataset(world))["pisr"]
    save_predictions(world / "pisr", metadata(), saved[:1])
    assert run(world) == 1
    errors = [line for line in capfd.readouterr().err.splitlines() if "error:" in line]
    assert len(errors) == 2 and "has no prediction of it" in errors[0] and "1 of 2 images failed" in errors[1]
    assert len(page_data(world / "out")["images"]) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--baseline": ["nowhere"]}, "nowhere: holds no panoptic.json"),
        ({"--baseline": ["a", "b", "c"]}, "--baseline takes CONFIG WEIGHTS, or one FOLDER"),
        ({"--pisr": ["configs/none.yaml", "weights.pth"]}, "configs/none.yaml"),
        ({"--input": ["no_such_data_set"]}, "neither a folder nor a data set"),
    ],
)
def test_what_cannot_be_compared_is_one_line(world, capfd, changes, message):
    given = {"--baseline": [world / "baseline"], "--pisr": [world / "pisr"], "--input": [NAME]}
    given |= {"--output": [world / "out"]} | changes
    arguments = [str(a) for option, values in given.items() for a in (option, *values)]
    assert run_cli(lambda: main(arguments)) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and message in errors[0]


def test_sides_of_other_classes_are_refused(world):
    content = json.loads((world / "pisr/panoptic.json").read_text())
    content["categories"][0]["name"] = "ceiling"
    (world / "pisr/panoptic.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="do not have the same classes"):
        run(world)
