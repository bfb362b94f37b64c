"""The validator on a data set of two images, spoilt in one way at a time (tests/tiny_panoptic.py)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_sem_seg

from mask_former.data.coco_panoptic import load_coco_panoptic
from mask_former.data.id_map import read_rgb_image, write_id_map, write_png
from mask_former.data.segments import read_panoptic_segments, require_same_size
from mask_former.errors import InputError, run_cli
from tests.real_data import real_data
from tests.tiny_panoptic import IDS, content, write
from tools import validate_dataset

Change = Callable[[Path, dict[str, Any]], Any]
CONFIG = Path(__file__).resolve().parent.parent / "configs/ade20k/maskformer_r50.yaml"


def validate(root: Path, *more: str) -> tuple[int, dict[str, Any]]:
    """Exit code and report of the tool for the data set under `root`."""
    paths = ["--images", root / "images", "--json", root / "panoptic.json", "--pngs", root / "pngs"]
    return run(root, *map(str, paths), *more)


def run(root: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    report = root / "report.json"
    code = validate_dataset.main([*arguments[:6], "--workers", "1", "--report", str(report), *arguments[6:]])
    found = json.loads(report.read_text())
    report.unlink()
    assert code == int(found["errors"] > 0)
    return code, found


def kinds(report: dict[str, Any], level: str) -> dict[str, int]:
    return {group["kind"]: group["count"] for group in report["findings"] if group["level"] == level}


def examples(report: dict[str, Any], kind: str) -> list[str]:
    return next(group["examples"] for group in report["findings"] if group["kind"] == kind)


def read_as_training_does(root: Path) -> None:
    """Raises InputError where training or evaluation would."""
    for record in load_coco_panoptic(root / "images", root / "panoptic.json", root / "pngs"):
        image = read_rgb_image(record["file_name"])
        segments = read_panoptic_segments(record, num_classes=3)
        require_same_size(segments.index.shape, image.shape[:2], "label", "image")


# What every report of the data set has, spoilt or not: no road anywhere, nothing in image 8.
ALWAYS = {"classes without a pixel": 1, "image without a target": 1}


def test_counts_by_hand(tmp_path, capsys):
    write(tmp_path)
    code, report = validate(tmp_path)
    assert code == 0 and kinds(report, "warning") == ALWAYS and not kinds(report, "note")
    assert report["data_sets"] == [
        {
            "name": "panoptic",
            "images": 2,
            "pixels": 24 + 6,
            "void": 5 + 6,
            "segments": 3,
            "crowd": 1,
            "crowd_pixels": 4,
            "most_segments": 3,
            "classes": [
                {"name": "sky", "kind": "stuff", "images": 1, "segments": 1, "pixels": 8},
                {"name": "cat", "kind": "thing", "images": 1, "segments": 2, "pixels": 7},
                {"name": "road", "kind": "stuff", "images": 0, "segments": 0, "pixels": 0},
            ],
        }
    ]
    shown = capsys.readouterr().out
    assert "36.67%" in shown and "13.33%" in shown  # void: 11 of 30, crowd: 4 of 30
    assert f"{tmp_path}/pngs/b_label.png: labels nothing but void or crowd" in shown
    assert "1 of 3 classes have no pixel: road" in shown


def segment(**values: Any) -> Change:
    """Change the sky's entry."""
    return lambda _, c: c["annotations"][0]["segments_info"][0].update(values)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:60])


def png_of(ids: Any) -> Change:
    return lambda root, _: write_id_map(root / "pngs/a_label.png", np.asarray(ids))


def annotate_again(_: Path, c: dict[str, Any]) -> None:
    c["annotations"].append(dict(c["annotations"][1]))


def copy_of_image(**names: str) -> Change:
    """A third image 9 with the label of image 8."""

    def change(root: Path, c: dict[str, Any]) -> None:
        (root / "images/c.png").write_bytes((root / "images/b.png").read_bytes())
        (root / "pngs/c_label.png").write_bytes((root / "pngs/b_label.png").read_bytes())
        c["images"].append({"id": 9, "file_name": names.get("image", "c.png"), "height": 2, "width": 3})
        label = names.get("label", "c_label.png")
        c["annotations"].append({"image_id": 9, "file_name": label, "segments_info": []})

    return change


ERRORS: dict[str, tuple[str, str, Change]] = {
    "no image": (
        "image missing or unreadable",
        "images/a.png: no such file",
        lambda r, _: (r / "images/a.png").unlink(),
    ),
    "half an image": ("image missing or unreadable", "images/a.png", lambda r, _: cut(r / "images/a.png")),
    "no PNG": (
        "panoptic PNG missing or unfit",
        "pngs/a_label.png: no such file",
        lambda r, _: (r / "pngs/a_label.png").unlink(),
    ),
    "half a PNG": ("panoptic PNG missing or unfit", "a_label.png", lambda r, _: cut(r / "pngs/a_label.png")),
    "grey PNG": (
        "panoptic PNG missing or unfit",
        "must be an 8-bit RGB image",
        lambda r, _: write_png(r / "pngs/a_label.png", IDS.astype(np.uint8)),
    ),
    "size of the PNG": (
        "image and label of different sizes",
        "the label is 6×3 pixels, but its image",
        png_of(IDS[:3]),
    ),
    "unlisted pixels": (
        "pixels of a segment that is not listed",
        "pixels have the id 77 (and 1 more ids), which the JSON does not list",
        png_of(np.where(IDS == 0, [[77], [77], [78], [78]], IDS)),
    ),
    "category": ("unknown category", "segment 10 has category 99", segment(category_id=99)),
    "segment twice": ("segment id used twice", "the segment id 3 stands twice", segment(id=3)),
    "segment 0": ("field missing or unfit", "segments_info[0]: id is 0, but must be", segment(id=0)),
    "iscrowd": ("field missing or unfit", "iscrowd is 2, but must be 0 or 1", segment(iscrowd=2)),
    "no field": (
        "field missing or unfit",
        "images[0] has no 'file_name'",
        lambda _, c: c["images"][0].pop("file_name"),
    ),
    "annotation of no image": (
        "annotation of no image",
        "annotations[0] is for image 1, which is not listed",
        lambda _, c: c["annotations"][0].update(image_id=1),
    ),
    "annotated twice": (
        "image annotated twice",
        "annotations[2] is a second annotation of image 8",
        annotate_again,
    ),
    "image id twice": (
        "image id used twice",
        "images[1] has the id 7 of another image",
        lambda _, c: c["images"][1].update(id=7),
    ),
    "image twice": (
        "image listed twice",
        "images[2]: b.png is listed already",
        copy_of_image(image="b.png"),
    ),
    "category id twice": (
        "annotations unusable",
        "categories[1]",
        lambda _, c: c["categories"][1].update(id=5),
    ),
    "no annotation": (
        "no annotations",
        "lists no annotation at all",
        lambda _, c: c["annotations"].clear(),
    ),
    "no folder": ("folder missing", "pngs: no such folder", lambda r, _: (r / "pngs").rename(r / "other")),
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_is_what_training_stumbles_over(case, tmp_path):
    kind, text, change = ERRORS[case]
    found = content()
    write(tmp_path)
    change(tmp_path, found)
    (tmp_path / "panoptic.json").write_text(json.dumps(found))
    code, report = validate(tmp_path)
    assert code == 1 and kind in kinds(report, "error")
    assert any(text in line and str(tmp_path) in line for line in examples(report, kind))
    with pytest.raises(InputError):
        read_as_training_does(tmp_path)


@pytest.mark.parametrize("json_text", [None, "{", '{"images": []}'])
def test_a_json_that_cannot_be_read_is_an_error(json_text, tmp_path):
    write(tmp_path)
    (tmp_path / "panoptic.json").unlink()
    if json_text:
        (tmp_path / "panoptic.json").write_text(json_text)
    code, report = validate(tmp_path)
    assert code == 1 and kinds(report, "error") == {"annotations unusable": 1}
    with pytest.raises(InputError):
        read_as_training_does(tmp_path)


WARNINGS: dict[str, tuple[str, str, Change]] = {
    "area": (
        "wrong area in the JSON",
        "a_label.png: segment 10 has area 8, but 9 in the JSON",
        segment(area=9),
    ),
    "no area": ("wrong area in the JSON", "but None in the JSON", segment(area=None)),
    "box": (
        "wrong bbox in the JSON",
        "has bbox [0, 0, 6, 3], but [0, 0, 6, 4] in the JSON",
        segment(bbox=[0, 0, 6, 4]),
    ),
    "no pixel": (
        "segment without a pixel",
        "segment 3 of the JSON has no pixel",
        png_of(np.where(IDS == 3, 0, IDS)),
    ),
    "size in the JSON": (
        "wrong size in the JSON",
        "images/a.png: is 6×4 pixels, but 6×40 in the JSON",
        lambda _, c: c["images"][0].update(height=40),
    ),
    "no annotation": (
        "image without annotation",
        "image 8 (b.png) has no annotation and is left out",
        lambda _, c: c["annotations"].pop(),
    ),
    "stuff crowd": ("crowd of stuff", "segment 10 of stuff (sky) is a crowd", segment(iscrowd=1)),
    "PNG twice": (
        "PNG listed twice",
        "b_label.png is another image's label too",
        copy_of_image(label="b_label.png"),
    ),
}


@pytest.mark.parametrize("case", WARNINGS)
def test_a_warning_is_what_training_gets_over(case, tmp_path):
    kind, text, change = WARNINGS[case]
    found = content()
    write(tmp_path)
    change(tmp_path, found)
    (tmp_path / "panoptic.json").write_text(json.dumps(found))
    code, report = validate(tmp_path)
    assert code == 0 and set(kinds(report, "warning")) - set(ALWAYS) == {kind}
    assert text in examples(report, kind)[0] and str(tmp_path) in examples(report, kind)[0]
    read_as_training_does(tmp_path)


def test_equal_images_are_noted(tmp_path):
    found = content()
    write(tmp_path)
    copy_of_image()(tmp_path, found)
    (tmp_path / "panoptic.json").write_text(json.dumps(found))
    code, report = validate(tmp_path)
    assert code == 0 and kinds(report, "note") == {"same image twice": 1}
    [line] = examples(report, "same image twice")
    assert f"{tmp_path}/images/c.png: the same bytes as {tmp_path}/images/b.png" in line


def test_many_problems_are_counted_and_few_are_shown(tmp_path, capsys):
    found = content()
    found["images"] += [{"id": i, "file_name": f"{i}.png", "height": 2, "width": 3} for i in range(50, 90)]
    found["annotations"] += [
        {"image_id": i, "file_name": f"{i}_label.png", "segments_info": []} for i in range(50, 90)
    ]
    write(tmp_path, found)
    code, report = validate(tmp_path, "--examples", "2")
    shown = capsys.readouterr().out
    assert code == 1 and kinds(report, "error")["image missing or unreadable"] == 40
    assert len(examples(report, "image missing or unreadable")) == 2
    assert "80 errors: training or evaluation would stop" in shown and "and 38 more" in shown
    assert shown.count("_label.png: no such file") == 2


def test_more_processes_find_the_same_and_no_file_is_changed(tmp_path):
    found = content()
    found["annotations"][0]["segments_info"][0].update(area=1, category_id=99)
    write(tmp_path, found)
    (tmp_path / "images/b.png").unlink()
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*.*")}
    one, three = validate(tmp_path), validate(tmp_path, "--workers", "3")
    assert one == three and one[0] == 1
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*.*")} == before


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A configuration of two data sets: the tiny one, and one of its image 7 alone."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write(tmp_path)
    found = content()
    del found["images"][1], found["annotations"][1]
    (tmp_path / "one.json").write_text(json.dumps(found))
    paths = "{IMAGES: images, PNGS: pngs, JSON: "
    sets = "".join(f"    tiny_{name}: {paths}{name}.json}}\n" for name in ("panoptic", "one"))
    file = tmp_path / "config.yaml"
    file.write_text(
        f"_BASE_: {CONFIG}\nDATASETS:\n  TRAIN: [tiny_panoptic]\n  TEST: [tiny_one]\n"
        f"  COCO_PANOPTIC:\n{sets}MODEL:\n  SEM_SEG_HEAD:\n    NUM_CLASSES: 3\n"
    )
    yield file
    for name in ("tiny_panoptic", "tiny_one", "tiny_semantic"):
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_the_data_sets_of_a_configuration(config, tmp_path):
    code, report = run(tmp_path, "--config-file", str(config))
    assert code == 0 and [data_set["name"] for data_set in report["data_sets"]] == [
        "tiny_panoptic",
        "tiny_one",
    ]
    assert kinds(report, "warning") == {**ALWAYS, "classes without a pixel": 2, "image in two data sets": 1}
    assert f"{tmp_path}/images/a.png of tiny_panoptic" in examples(report, "image in two data sets")[0]
    _, report = run(tmp_path, "--config-file", str(config), "--split", "test")
    assert [data_set["images"] for data_set in report["data_sets"]] == [1]


def test_what_does_not_fit_the_model(config, tmp_path):
    options = ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "4", "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "2"]
    arguments = ["--config-file", str(config), "--split", "test", "--examples", "1"]
    code, report = run(tmp_path, *arguments, *options)
    assert code == 1 and kinds(report, "error") == {"number of classes": 1}
    assert examples(report, "number of classes") == [
        "tiny_one: has 3 classes, the model 4; set MODEL.SEM_SEG_HEAD.NUM_CLASSES 3"
    ]
    assert "has 3 segments, but the model 2 queries" in examples(report, "more segments than queries")[0]


def test_data_sets_that_differ_in_their_classes(config, tmp_path):
    found = content()
    found["categories"][0]["name"] = "dog"
    (tmp_path / "one.json").write_text(json.dumps(found))
    code, report = run(tmp_path, "--config-file", str(config))
    assert code == 1 and kinds(report, "error") == {"data sets of different classes": 1}


def test_a_data_set_that_is_not_there_does_not_hide_the_others(config, tmp_path):
    (tmp_path / "panoptic.json").unlink()
    code, report = run(tmp_path, "--config-file", str(config))
    assert (
        code == 1 and f"{tmp_path}/panoptic.json: no such file" in examples(report, "annotations unusable")[0]
    )
    assert [data_set["images"] for data_set in report["data_sets"]] == [0, 1]


def test_an_unknown_data_set_is_a_command_line_that_cannot_be_meant(config, capsys):
    arguments = ["--config-file", str(config), "DATASETS.TEST", "('tiny_pan',)"]
    assert run_cli(lambda: validate_dataset.main(arguments)) == 2
    assert "unknown data set 'tiny_pan'" in capsys.readouterr().err


def test_semantic_labels_alone(config, tmp_path):
    """Classes 0 and 1 of two; a label has a 2, one is void alone, one image and one label are alone."""
    labels, images = tmp_path / "semantic", tmp_path / "photos"
    labels.mkdir(), images.mkdir()
    for name, label in (("a", [[0, 0, 1], [255, 0, 2]]), ("b", [[255] * 3] * 2), ("lone", [[0] * 3] * 2)):
        write_png(labels / f"{name}.png", np.array(label, np.uint8))
    for name in ("a", "b"):
        cv2.imwrite(str(images / f"{name}.jpg"), np.full((2, 3, 3), ord(name), np.uint8))
    DatasetCatalog.register("tiny_semantic", lambda: load_sem_seg(str(labels), str(images)))
    MetadataCatalog.get("tiny_semantic").set(
        stuff_classes=["floor", "wall"], image_root=str(images), sem_seg_root=str(labels), ignore_label=255
    )
    options = ["--split", "train", "--examples", "3"]
    model = ["DATASETS.TRAIN", "('tiny_semantic',)", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "2"]
    code, report = run(tmp_path, "--config-file", str(config), *options, *model)
    assert code == 1 and kinds(report, "error") == {"unknown class": 1}
    assert f"{labels}/a.png: 1 pixels have the class 2, not" in examples(report, "unknown class")[0]
    assert kinds(report, "warning") == {"image or label without its partner": 1, "image without a target": 1}
    assert (
        f"{labels}/lone: has no image of its name"
        in examples(report, "image or label without its partner")[0]
    )
    [data_set] = report["data_sets"]
    assert (data_set["pixels"], data_set["void"], data_set["images"]) == (12, 7, 2)
    assert data_set["classes"] == [
        {"name": "floor", "kind": "", "images": 1, "segments": 1, "pixels": 3},
        {"name": "wall", "kind": "", "images": 1, "segments": 1, "pixels": 1},
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "name either --config-file or all of"),
        (["--images", "a", "--json", "b"], "name either --config-file or all of"),
        (["--config-file", "a", "--pngs", "b"], "name either --config-file or all of"),
        (["--images", "a", "--json", "b", "--pngs", "c", "SEED", "1"], "SEED: KEY VALUE pairs change a"),
        (["--config-file", "a", "--workers", "0"], "--workers 0: use at least 1"),
        (["--config-file", "missing.yaml"], "missing.yaml"),
    ],
)
def test_a_command_line_that_cannot_be_meant(arguments, says, capsys):
    assert run_cli(lambda: validate_dataset.main(arguments)) == 2
    assert says in capsys.readouterr().err


def test_a_report_that_cannot_be_written(tmp_path, capsys):
    write(tmp_path)
    arguments = ["--images", tmp_path / "images", "--json", tmp_path / "panoptic.json"]
    arguments += ["--pngs", tmp_path / "pngs", "--workers", "1", "--report", tmp_path / "none" / "r.json"]
    assert run_cli(lambda: validate_dataset.main([*map(str, arguments)])) == 2
    shown = capsys.readouterr()  # found out before the work, not after it
    assert f"r.json: there is no folder {tmp_path}/none; name another file" in shown.err and not shown.out


def test_real_images_have_no_errors(tmp_path):
    root = real_data("coco")
    annotations = root / "annotations"
    arguments = ["--images", root / "val2017", "--json", annotations / "panoptic_val2017.json"]
    code, report = run(tmp_path, *map(str, [*arguments, "--pngs", annotations / "panoptic_val2017"]))
    assert code == 0 and kinds(report, "warning") == {"classes without a pixel": 1}
    [data_set] = report["data_sets"]
    assert (data_set["images"], data_set["segments"], data_set["crowd"]) == (100, 1073, 5)
