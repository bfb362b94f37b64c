import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask_former.data.coco_panoptic import load_coco_panoptic
from mask_former.data.id_map import read_id_map
from mask_former.data.own_labels import segment_ids
from mask_former.errors import InputError, run_cli
from tools import make_panoptic

NAMES = [
    {"id": 7, "name": "road", "isthing": 0},
    {"id": 0, "name": "car", "isthing": 1},
    {"id": 300, "name": "dog", "isthing": 1},
]
# cars 1 and 9, a dog with the number 1 too, a pixel of a car without a number, numbers on the road, void
CLASSES = np.array([[7, 7, 7, 7, 255], [0, 0, 0, 300, 300], [0, 0, 0, 0, 255]])
NUMBERS = np.array([[0, 0, 5, 6, 0], [1, 1, 9, 1, 1], [1, 1, 9, 0, 3]])
IDS = np.array([[3, 3, 3, 3, 0], [1, 1, 2, 4, 4], [1, 1, 2, 0, 0]])


def test_segments_by_hand():
    ids, categories = segment_ids(CLASSES, NUMBERS, NAMES, void=(255,))
    np.testing.assert_array_equal(ids, IDS)
    assert categories == {1: 0, 2: 0, 3: 7, 4: 300}


def test_segments_without_void_and_of_void_alone():
    ids, categories = segment_ids(np.full((2, 3), 7), np.arange(6).reshape(2, 3), NAMES, void=(255,))
    assert (ids == 1).all() and categories == {1: 7}  # numbers of stuff do not count
    ids, categories = segment_ids(np.full((2, 3), 4), np.zeros((2, 3), int), NAMES, void=(4, 255))
    assert (ids == 0).all() and categories == {}


def test_the_same_number_in_two_classes_is_two_segments():
    generator = np.random.default_rng(0)
    classes, numbers = (
        generator.choice([0, 7, 300, 255], (40, 50)),
        generator.integers(0, 65536, (40, 50)) % 3,
    )
    ids, categories = segment_ids(classes, numbers, NAMES, void=(255,))
    expected = {(0, 1), (0, 2), (300, 1), (300, 2), (7, 0)}
    found = set()
    for key, category in categories.items():
        assert (classes[ids == key] == category).all()
        numbers_here = set(numbers[ids == key].tolist()) if category != 7 else {0}
        assert len(numbers_here) == 1
        found.add((category, *numbers_here))
    assert found == expected and set(np.unique(ids)) == {0, *categories}
    np.testing.assert_array_equal(ids == 0, (classes == 255) | ((numbers == 0) & np.isin(classes, [0, 300])))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("images", "classes", "instances"):
        (tmp_path / folder).mkdir()
    for name in ("b.jpg", "a.png"):
        Image.fromarray(np.zeros((3, 5, 3), np.uint8)).save(tmp_path / "images" / name)
        stem = name.split(".")[0]
        Image.fromarray(CLASSES.astype(np.uint16)).save(tmp_path / f"classes/{stem}.png")
        Image.fromarray(NUMBERS.astype(np.uint8)).save(tmp_path / f"instances/{stem}.png")
    (tmp_path / "images/notes.txt").write_text("not an image")
    (tmp_path / "names.json").write_text(json.dumps(NAMES))
    return tmp_path


def arguments(root: Path, *more: str) -> list[str]:
    given = {"images": "images", "classes": "classes", "instances": "instances", "names": "names.json"}
    options = [text for key, value in given.items() for text in (f"--{key}", str(root / value))]
    return [*options, "--json", str(root / "made/train.json"), "--workers", "1", *more]


def test_what_is_made_is_a_coco_panoptic_data_set(root, caplog):
    make_panoptic.main(arguments(root))
    records = load_coco_panoptic(root / "images", root / "made/train.json", root / "made/train")
    assert [(r["image_id"], Path(r["file_name"]).name, r["height"], r["width"]) for r in records] == [
        ("a", "a.png", 3, 5),
        ("b", "b.jpg", 3, 5),
    ]
    for record in records:
        np.testing.assert_array_equal(read_id_map(record["pan_seg_file_name"]), IDS)
        keys = ("id", "category_id", "isthing", "area", "bbox")
        assert [tuple(segment[key] for key in keys) for segment in record["segments_info"]] == [
            (1, 0, True, 4, [0, 1, 2, 2]),
            (2, 0, True, 2, [2, 1, 1, 2]),
            (3, 1, False, 4, [0, 0, 4, 1]),
            (4, 2, True, 2, [3, 1, 2, 1]),
        ]
    assert json.loads((root / "made/train.json").read_text())["categories"] == NAMES
    assert "2 images have pixels of things without an instance number" in caplog.text


def test_again_and_with_more_processes_it_makes_the_same(root):
    make_panoptic.main(arguments(root))
    first = {path.name: path.read_bytes() for path in (root / "made").rglob("*.*")}
    make_panoptic.main(arguments(root, "--workers", "2"))
    assert {path.name: path.read_bytes() for path in (root / "made").rglob("*.*")} == first
    assert sorted(first) == ["a.png", "b.png", "train.json"]


def test_stuff_alone_needs_no_instances(root):
    (root / "names.json").write_text(json.dumps([{**category, "isthing": 0} for category in NAMES]))
    options = arguments(root)
    del options[4:6]
    make_panoptic.main(options)
    content = json.loads((root / "made/train.json").read_text())
    areas = [{s["category_id"]: s["area"] for s in a["segments_info"]} for a in content["annotations"]]
    assert areas == [{0: 7, 7: 4, 300: 2}] * 2


def spoil(root: Path, what: str) -> list[str]:
    options = arguments(root)
    if what == "no label":
        (root / "instances/a.png").unlink()
    elif what == "unknown class":
        (root / "names.json").write_text(json.dumps(NAMES[:2]))
    elif what == "size":
        Image.fromarray(CLASSES[:2].astype(np.uint8)).save(root / "classes/b.png")
    elif what == "two images of a name":
        (root / "images/a.jpg").write_bytes((root / "images/b.jpg").read_bytes())
    elif what == "names":
        (root / "names.json").write_text(json.dumps([*NAMES, NAMES[0]]))
    elif what == "no list":
        (root / "names.json").write_text("{}")
    elif what == "no images":
        options[1] = str(root / "made")
        (root / "made").mkdir()
    elif what == "no instances":
        del options[4:6]
    elif what == "void is a class":
        options += ["--void", "0", "255"]
    elif what == "over the labels":
        options[options.index("--json") + 1] = str(root / "classes.json")
    elif what == "workers":
        options += ["--workers", "0"]
    return options


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("no label", "instances/a.png: no such file, as for 1 of 2 images"),
        ("unknown class", "classes/a.png: pixels have the class 300, which is not listed"),
        ("size", "classes/b.png: the label is 5×2 pixels, but its image"),
        ("two images of a name", "images/a.png: has the name of a.jpg"),
        ("names", "names.json: categories[3]"),
        ("no list", "names.json: must be a list of"),
        ("no images", "made: holds no images"),
        ("no instances", "names.json: car is a thing, which needs instance numbers"),
        ("void is a class", "names.json: the id 0 stands for void"),
        ("over the labels", "classes.json: its PNGs would go to the folder of --classes"),
        ("workers", "--workers 0: use at least 1"),
    ],
)
def test_what_cannot_be_made_is_refused_in_a_line(what, says, root, capsys):
    options = spoil(root, what)
    before = {path: path.read_bytes() for path in root.rglob("*.*")}
    assert run_cli(lambda: make_panoptic.main(options)) == 2
    assert says in capsys.readouterr().err.splitlines()[-1]
    made = {path for path in root.rglob("*.*") if path.parent == root / "made/train"}
    assert {path: path.read_bytes() for path in {*root.rglob("*.*")} - made} == before


def test_an_old_json_does_not_outlive_a_run_that_failed(root):
    make_panoptic.main(arguments(root))
    Image.fromarray(np.full((3, 5), 99, np.uint8)).save(root / "classes/b.png")
    with pytest.raises(InputError, match="pixels have the class 99"):
        make_panoptic.main(arguments(root))
    assert not (root / "made/train.json").exists()
