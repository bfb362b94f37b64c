"""Panoptic JSON files: broken as a whole, wrong types, ids that clash, categories that are none."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.malformed.case import Case, Place
from tests.malformed.images import become_folder

JSON = "{data}/toy/annotations/panoptic_train.json"
FOLLOW = "the file must follow COCO's panoptic format"
CORRECT = "correct the file"
AGAIN = "write or fetch it again"
SEGMENT = "annotations[0], segments_info[0]: "


def file_case(name: str, spoil: Callable[[Path], Any], *says: str) -> Case:
    def spoil_json(place: Place) -> None:
        spoil(place.json)

    return Case(name, spoil_json, (JSON, *says))


def case(name: str, change: Callable[[dict[str, Any]], Any], *says: str) -> Case:
    """The JSON as `change` leaves its content."""

    def rewrite(path: Path) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return file_case(name, rewrite, *says)


def image(name: str, says: str, mend: str = CORRECT, /, **values: Any) -> Case:
    """The first image's entry with these values."""
    return case(name, lambda c: c["images"][0].update(values), "images[0]", says, mend)


def annotation(name: str, says: str, mend: str = CORRECT, /, **values: Any) -> Case:
    return case(name, lambda c: c["annotations"][0].update(values), "annotations[0]", says, mend)


def segment(name: str, says: str, mend: str = CORRECT, /, **values: Any) -> Case:
    """The first segment of the first annotation with these values."""
    return case(name, lambda c: c["annotations"][0]["segments_info"][0].update(values), SEGMENT, says, mend)


def category(name: str, says: str, mend: str = CORRECT, /, **values: Any) -> Case:
    return case(name, lambda c: c["categories"][0].update(values), "categories[0]", says, mend)


def same_segment_twice(content: dict[str, Any]) -> None:
    segments = content["annotations"][0]["segments_info"]
    segments.append(dict(segments[0]))


FILES = [
    file_case("JSON cut short", lambda f: f.write_text(f.read_text()[:200]), "is not JSON", AGAIN),
    file_case("JSON without bytes", lambda f: f.write_bytes(b""), "is not JSON", AGAIN),
    file_case("JSON in Latin-1", lambda f: f.write_bytes(b'{"images": "\xe9"}'), "is not JSON", AGAIN),
    file_case("zeros instead of JSON", lambda f: f.write_bytes(bytes(500)), "is not JSON", AGAIN),
    file_case(
        "JSON of huge nesting",
        lambda f: f.write_text('{"images": ' + "[" * 200_000 + "]" * 200_000 + "}"),
        "nested too deeply",
        AGAIN,
    ),
    file_case("JSON of a single list", lambda f: f.write_text("[]"), "has no 'images'", FOLLOW),
    file_case("JSON null", lambda f: f.write_text("null"), "has no 'images'", FOLLOW),
    file_case("JSON missing", Path.unlink, "no such file", "check its path and $DETECTRON2_DATASETS"),
    file_case(
        "folder in the place of the JSON",
        become_folder,
        "cannot be read (Is a directory)",
        "check the path",
    ),
]

LISTS = [
    case("no annotations key", lambda c: c.pop("annotations"), "has no 'annotations'", FOLLOW),
    case(
        "images as a mapping",
        lambda c: c.update(images={}),
        "'images' must be a list",
        "as in COCO's panoptic format",
    ),
    case("annotations null", lambda c: c.update(annotations=None), "'annotations' must be a list", "COCO"),
    case(
        "no annotation at all",
        lambda c: c.update(annotations=[]),
        "lists no annotation at all",
        "check that it is the right file",
    ),
    case("no category", lambda c: c.update(categories=[]), "'categories'", "list at least one class"),
    case("an image that is a string", lambda c: c["images"].insert(0, "a"), "images[0] has no 'id'", FOLLOW),
    case("an annotation that is null", lambda c: c["annotations"].insert(0, None), "annotations[0]", FOLLOW),
    case(
        "an image listed twice",
        lambda c: c["images"].append(c["images"][0]),
        "images[4]",
        "have the same id",
        "keep one",
    ),
    case(
        "an image annotated twice",
        lambda c: c["annotations"].append(c["annotations"][0]),
        "annotations[4] is a second annotation of image",
        "keep one",
    ),
    case(
        "one file for two images",
        lambda c: c["images"][1].update(file_name=c["images"][0]["file_name"]),
        "images[1]",
        "the same file_name as another",
        "keep one",
    ),
]

FIELDS = [
    case("image without a width", lambda c: c["images"][0].pop("width"), "images[0] has no 'width'", FOLLOW),
    image("image id null", "id is None, but must be an integer or a string", id=None),
    image("image id a list", "id is [1], but must be an integer or a string", id=[1]),
    image("file name null", "file_name is None, but must be the name of a file", file_name=None),
    image("file name empty", "file_name is '', but must be the name of a file", file_name=""),
    image("file name with a zero byte", "file_name is 'a\\x00.jpg'", file_name="a\0.jpg"),
    image("file name with half a character", "file_name is '\\ud800.jpg'", file_name="\ud800.jpg"),
    image("height a string", "height is '64', but must be a positive integer", height="64"),
    image("width negative", "width is -64, but must be a positive integer", width=-64),
    image("width a fraction", "width is 64.5, but must be a positive integer", width=64.5),
    annotation(
        "annotation of an unlisted image",
        "is for image 99, which is not listed under 'images'",
        "add or drop it",
        image_id=99,
    ),
    annotation("annotation's image id a mapping", "image_id is {{}}, but must be", image_id={}),
    annotation("label's name a number", "file_name is 5, but must be the name of a file", file_name=5),
    annotation("segments null", "segments_info is None, but must be a list", segments_info=None),
    annotation("segments a mapping", "segments_info is {{}}, but must be a list", segments_info={}),
    annotation("segments a number list", "segments_info[0] has no 'id'", FOLLOW, segments_info=[5]),
    case("segment id twice", same_segment_twice, "annotations[0], segments_info", "give each its own"),
    segment("segment id a string", "id is '7', but must be an integer of 1..16777215", id="7"),
    segment("segment id null", "id is None, but must be an integer", id=None),
    segment("segment id a fraction", "id is 7.0, but must be an integer", id=7.0),
    segment("segment id true", "id is True, but must be an integer", id=True),
    segment("segment id zero", "id is 0, but must be an integer of 1..16777215", id=0),
    segment("segment id negative", "id is -3, but must be an integer of 1..16777215", id=-3),
    segment("segment id too large", "id is 16777216, but must be", id=2**24),
    segment(
        "category unknown", "category 4711, not listed under 'categories'", "add it there", category_id=4711
    ),
    segment("category a list", "category_id is [1], but must be an integer", category_id=[1]),
    segment("category a fraction", "category_id is 1.0, but must be an integer", category_id=1.0),
    segment("crowd null", "iscrowd is None, but must be 0 or 1", iscrowd=None),
    segment("crowd a word", "iscrowd is 'no', but must be 0 or 1", iscrowd="no"),
]

CATEGORIES = [
    case(
        "category without isthing",
        lambda c: c["categories"][0].pop("isthing"),
        "categories[0] has no 'isthing'",
        FOLLOW,
    ),
    case(
        "category id twice",
        lambda c: c["categories"][1].update(id=c["categories"][0]["id"]),
        "categories[1]: the id 1 is that of categories[0] too",
        "an integer id of its own",
    ),
    case(
        "category name twice",
        lambda c: c["categories"][1].update(name=c["categories"][0]["name"]),
        "categories[1]: the name",
        "is that of categories[0] too",
        "a name of its own",
    ),
    category("category id a string", "id is '1', but must be an integer", id="1"),
    category("category id a list", "id is [], but must be an integer", id=[]),
    category("category name null", "name is None, but must be a name", name=None),
    category("category name blank", "name is ' ', but must be a name", name=" "),
    category("isthing a word", "isthing is 'yes', but must be 0 or 1", isthing="yes"),
    category("isthing null", "isthing is None, but must be 0 or 1", isthing=None),
    category("colour a number", "color is 5, but must be three integers of 0..255", color=5),
    category("colour out of range", "color is [0, 0, 256], but must be three", color=[0, 0, 256]),
]


def other_validation_classes(place: Place) -> None:
    path = place.data / "toy/annotations/panoptic_val.json"
    content = json.loads(path.read_text())
    content["categories"][0]["name"] = "submarine"
    path.write_text(json.dumps(content))


DIFFERENT = Case(
    "other classes in validation",
    other_validation_classes,
    ("data sets toy_train and toy_val differ", "'submarine'", "must have the same"),
)

CASES = [DIFFERENT] + FILES + LISTS + FIELDS + CATEGORIES
