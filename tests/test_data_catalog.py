import pytest
from detectron2.data import MetadataCatalog

from mask_former.data.catalog import (
    class_colors,
    dataset_ids,
    dataset_metadata,
    dataset_records,
    panoptic_metadata,
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


@pytest.mark.parametrize("look_up", [dataset_records, dataset_metadata])
def test_an_unknown_name_lists_what_is_near_and_known(look_up):
    with pytest.raises(
        InputError, match="did you mean ade20k_panoptic_train.*known:.*coco_2017_val_panoptic"
    ):
        look_up("ade20k_panoptic_trian")
    assert "ade20k_panoptic_trian" not in MetadataCatalog.list()


def test_missing_files_of_detectron2s_loaders_are_named():
    if (dataset_metadata("ade20k_sem_seg_val").image_root).startswith("/"):
        pytest.skip("$DETECTRON2_DATASETS is set, the data may be there")
    with pytest.raises(InputError, match="ADEChallengeData2016/.*validation is missing; check"):
        dataset_records("ade20k_sem_seg_val")
