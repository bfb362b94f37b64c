import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from mask_former.data.catalog import (
    class_colors,
    dataset_ids,
    dataset_metadata,
    dataset_records,
    first_metadata,
    panoptic_metadata,
    require_same_classes,
    thing_ids,
)
from mask_former.errors import InputError

CATEGORIES = [
    {"id": 9, "name": "road", "isthing": 0},
    {"id": 2, "name": "cat", "isthing": 1},
    {"id": 5, "name": "dog", "isthing": 1},
]


def test_contiguous_ids_follow_ascending_dataset_ids():
    metadata = panoptic_metadata(CATEGORIES)
    assert metadata["thing_classes"] == metadata["stuff_classes"] == ["cat", "dog", "road"]
    assert metadata["thing_dataset_id_to_contiguous_id"] == {2: 0, 5: 1}
    assert metadata["stuff_dataset_id_to_contiguous_id"] == {9: 2}
    assert metadata["thing_colors"] == metadata["stuff_colors"] == class_colors(3)
    assert metadata["ignore_label"] == 255 and metadata["label_divisor"] == 1000


def test_given_colours_are_kept_when_all_classes_have_one():
    colored = [{**category, "color": [category["id"], 0, 0]} for category in CATEGORIES]
    assert panoptic_metadata(colored)["stuff_colors"] == [[2, 0, 0], [5, 0, 0], [9, 0, 0]]
    assert panoptic_metadata([*CATEGORIES[:2], colored[2]])["stuff_colors"] == class_colors(3)


def test_colours_are_distinct_and_do_not_depend_on_the_count():
    colors = class_colors(1000)
    assert len({tuple(color) for color in colors}) == 1000
    assert all(0 <= value <= 255 for color in colors for value in color)
    assert class_colors(150) == colors[:150]


@pytest.mark.parametrize("count", [133, 150])
def test_no_two_colours_of_a_large_data_set_are_nearly_equal(count):
    colors = np.array(class_colors(count))
    distances = np.abs(colors[:, None] - colors).sum(axis=2)
    assert distances[~np.eye(count, dtype=bool)].min() >= 12


def test_ids_of_detectron2s_own_data_sets():
    coco = dataset_metadata("coco_2017_val_panoptic")
    ids = dataset_ids(coco)
    assert list(ids) == list(range(133))
    assert ids[0] == 1 and ids[79] == 90 and ids[80] == 92 and ids[132] == 200
    assert thing_ids(coco) == list(range(80))


def test_a_semantic_data_set_has_no_things_and_its_own_numbering():
    metadata = dataset_metadata("ade20k_sem_seg_val")
    assert thing_ids(metadata) == []
    assert dataset_ids(metadata) == {index: index for index in range(150)}


LOOK_UPS = [
    dataset_records,
    dataset_metadata,
    lambda name: first_metadata([name]),
    lambda name: require_same_classes(["ade20k_panoptic_val", name]),
]


@pytest.mark.parametrize("look_up", LOOK_UPS)
def test_an_unknown_name_lists_what_is_near_and_the_projects_own(look_up, own_set):
    own_set("my_scenes", CATEGORIES)
    with pytest.raises(InputError, match="did you mean ade20k_panoptic_train or ") as caught:
        look_up("ade20k_panoptic_trian")
    listed = str(caught.value).split("known, besides detectron2's: ")[1].split(", ")
    ade20k = [f"ade20k_{kind}_{split}" for kind in ("panoptic", "sem_seg") for split in ("train", "val")]
    assert {*ade20k, "my_scenes"} <= set(listed)
    assert not {"coco_2017_val_panoptic", "lvis_v1_train", "voc_2007_val"} & set(listed)
    assert "ade20k_panoptic_trian" not in MetadataCatalog.list()


@pytest.fixture
def own_set():
    """Registers data sets by name and categories, and forgets them after the test."""
    names = []

    def register(name: str, categories: list[dict]) -> None:
        names.append(name)
        DatasetCatalog.register(name, list)
        MetadataCatalog.get(name).set(**panoptic_metadata(categories))

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_sets_with_the_same_classes_give_the_first_ones_metadata(own_set):
    own_set("one", CATEGORIES)
    own_set("other", [{**category, "id": 10 * category["id"]} for category in CATEGORIES])
    assert require_same_classes(["one", "other"]).name == "one", "dataset ids may differ"
    assert require_same_classes(["other"]).name == "other"


@pytest.mark.parametrize(
    ("position", "change", "words"),
    [
        (2, {"name": "hound"}, "class 1 is 'dog' in the one, 'hound' in the other"),
        (2, {"isthing": 0}, r"class 1 \(dog\) is a thing in the one, stuff in the other"),
        (1, {"id": 7}, "class 0 is 'cat' in the one, 'dog' in the other"),  # another order
        (None, {}, "class 2 is 'road' in the one, absent in the other"),
    ],
)
def test_sets_that_differ_in_their_classes_are_both_named(own_set, position, change, words):
    own_set("one", CATEGORIES)
    changed = [{**c, **change} if index == position else c for index, c in enumerate(CATEGORIES)]
    own_set("other", changed if position is not None else CATEGORIES[1:])
    with pytest.raises(InputError, match=f"data sets one and other differ in their classes: {words}"):
        require_same_classes(["one", "other"])


def test_two_splits_differ_also_behind_a_set_that_has_none(own_set):
    own_set("panoptic", CATEGORIES)
    own_set("all_stuff", [{**category, "isthing": 0} for category in CATEGORIES])
    own_set("semantic", CATEGORIES)
    for kind in ("thing", "stuff"):
        delattr(MetadataCatalog.get("semantic"), f"{kind}_dataset_id_to_contiguous_id")
    for other in ("panoptic", "all_stuff"):
        assert require_same_classes(["semantic", other]).name == "semantic"
    with pytest.raises(InputError, match=r"panoptic and all_stuff differ.* class 0 \(cat\) is a thing in"):
        require_same_classes(["semantic", "panoptic", "all_stuff"])


def test_ade20ks_semantic_and_panoptic_sets_have_the_same_classes():
    semantic = ["ade20k_sem_seg_train", "ade20k_sem_seg_val"]
    assert require_same_classes(semantic).name == semantic[0]
    assert require_same_classes(["ade20k_panoptic_train", *semantic]).name == "ade20k_panoptic_train"
    assert require_same_classes([*semantic, "ade20k_panoptic_train"]).name == semantic[0]
    with pytest.raises(InputError, match="ade20k_sem_seg_train and coco_2017_val_panoptic differ.*class 0"):
        require_same_classes([semantic[0], "coco_2017_val_panoptic"])


@pytest.mark.parametrize("names", [["coco_2017_val"], ["ade20k_panoptic_train", "coco_2017_val"]])
def test_a_set_of_boxes_has_no_classes_to_compare(names):
    with pytest.raises(InputError, match="coco_2017_val has boxes or instances only"):
        require_same_classes(names)


def test_missing_files_of_detectron2s_loaders_are_named():
    if (dataset_metadata("ade20k_sem_seg_val").image_root).startswith("/"):
        pytest.skip("$DETECTRON2_DATASETS is set, the data may be there")
    with pytest.raises(InputError, match="ADEChallengeData2016/.*validation is missing; check"):
        dataset_records("ade20k_sem_seg_val")
