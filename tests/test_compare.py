"""tools/compare.py on saved predictions: numbers, what is done again, refusals."""

import errno
import json
import os
from unittest import mock

import numpy as np
import panopticapi.evaluation as panopticapi
import pytest
from detectron2.data import MetadataCatalog
from PIL import Image

from mask_former.data.catalog import dataset_ids, thing_ids
from mask_former.data.id_map import write_id_map
from mask_former.errors import InputError, run_cli
from pisr_maskformer.visualization.page import Table, signed
from tests.comparison_data import (
    NAME,
    Saved,
    compared_scenes,
    page_data,
    predictions,
    records_of,
    run,
    save_predictions,
    write_photo,
)
from tests.evaluation_data import (
    CAT,
    DOG,
    ROAD,
    SCENES,
    SKY,
    metadata,
    register,
    segments,
    unregister,
    write_dataset,
)
from tools.compare import main
from tools.comparison.report import markdown


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
    assert f"| Δ | – | – | {signed(sum(gains))} |" in table


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
    with pytest.raises(InputError, match="holds a comparison of other models, images, labels"):
        run(world, "--first", "1")


@pytest.mark.parametrize("changed", ["1_panoptic.png", "side_1/photo.jpg", "truth.json"])
def test_old_scores_are_not_mixed_with_new_labels_or_images(world, changed):
    (world / "truth.json").write_text("{}")
    MetadataCatalog.get(NAME).set(panoptic_json=str(world / "truth.json"))
    run(world, "--first", 2)
    os.utime(world / changed, ns=(1, 1))
    with pytest.raises(InputError, match="files that changed since"):
        run(world, "--first", 2)


def test_a_prediction_is_found_by_its_path_where_names_and_ids_are_numbers(tmp_path):
    """Photos in the order 1, 10, 2 have ids 1, 2, 3 in the data set; predict.py calls them 1, 10 and 2."""
    whole = np.ones((6, 10), np.int32)
    classes = {"1": SKY, "10": ROAD, "2": CAT}
    records, saved = [], []
    for number, (stem, category) in enumerate(classes.items(), start=1):
        photo = write_photo(tmp_path / f"photos/{stem}.jpg", 6, 10)
        write_id_map(tmp_path / f"{stem}.png", whole)
        record = {"file_name": str(photo), "image_id": number, "height": 6, "width": 10}
        record |= {"pan_seg_file_name": str(tmp_path / f"{stem}.png")}
        records.append({**record, "segments_info": segments(_1=category)})
        saved.append(Saved(stem, photo, whole, {1: category}))
    register("tests_numbers", records)
    for side in ("baseline", "pisr"):
        save_predictions(tmp_path / side, metadata(), saved)
    try:
        assert run(tmp_path, given="tests_numbers") == 0
        # an id alone, of a file of another name, is no match either
        save_predictions(tmp_path / "pisr", metadata(), saved[:1] + saved[2:])
        assert run(tmp_path, given="tests_numbers", output="fewer") == 1
    finally:
        unregister("tests_numbers")
    assert [record["pq"]["pisr"] for record in records_of(tmp_path / "out")] == [100, 100, 100]
    assert [record["name"] for record in records_of(tmp_path / "fewer")] == ["1", "2"]


@pytest.mark.parametrize(
    "name", ["images.jsonl", "comparison.json", "instances.jsonl", "index.html", "metrics.md", "gains.jpg"]
)
def test_a_folder_in_the_place_of_a_result_is_one_line(world, capfd, name):
    (world / "out" / name).mkdir(parents=True)
    assert run_cli(lambda: run(world)) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and f"{name}: it is a folder" in errors[0]


def test_a_file_in_the_place_of_the_pictures_is_one_line(world, capfd):
    (world / "out").mkdir()
    (world / "out/images").write_text("")
    assert run_cli(lambda: run(world)) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "out/images" in errors[0]
    assert not (world / "out/comparison.json").exists()


def test_gains_by_class_of_every_metric_have_signs(world):
    run(world)
    lines = (world / "out/metrics.md").read_text().splitlines()
    assert "| class | PQ baseline | PQ PISR | gain in PQ | IoU baseline | IoU PISR | gain in IoU |" in lines
    assert "| road | 0.0 | 100.0 | +100.0 | 0.0 | 100.0 | +100.0 |" in lines
    columns = [line.split("|") for line in lines if line.startswith(("| sky |", "| cat |", "| dog |"))]
    assert len(columns) == 3 and all(row[i][1] in "+−±" for row in columns for i in (4, 7))


def test_a_gain_that_rounds_to_nothing_has_no_minus():
    table = Table(["", "a", "gain"], [["PQ", -1.0, -0.04], ["SQ", 1.0, -2.0]], gains=True)
    assert markdown(table).splitlines()[2:] == ["| PQ | -1.0 | ±0.0 |", "| SQ | 1.0 | −2.0 |"]


def test_the_configuration_that_registers_the_data_honours_opts(world):
    with mock.patch("tools.compare.project_config") as project_config:
        run(world, "--config-file", "c.yaml", "--opts", "SEED", "1")
    project_config.assert_called_once_with("c.yaml", ["SEED", "1"])


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
    with pytest.raises(InputError, match=r"the same classes: class 0 is 'sky' in the one, 'ceiling' in"):
        run(world)


def test_sides_that_count_other_classes_as_things_are_refused(world):
    content = json.loads((world / "pisr/panoptic.json").read_text())
    content["categories"][2]["isthing"] = 0
    (world / "pisr/panoptic.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"class 2 \(cat\) is a thing in the one, stuff in the other"):
        run(world)
