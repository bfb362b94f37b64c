import numpy as np
import pytest
from PIL import Image

from mask_former.data.id_map import write_id_map
from mask_former.data.segments import (
    index_type,
    read_panoptic_segments,
    read_semantic_segments,
    require_same_size,
)
from mask_former.errors import InputError
from tests import tiny_panoptic

SKY, CAT, ROAD = 0, 1, 2


def test_segments_follow_the_json_and_crowd_and_void_are_nothing(tmp_path):
    tiny_panoptic.write(tmp_path)
    segments = read_panoptic_segments(tiny_panoptic.record(tmp_path), num_classes=3)
    expected = [[1, 1, 1, 1, 1, 1], [1, 2, 2, 3, 3, 0], [1, 2, 2, 3, 0, 0], [0, 0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(segments.index, expected)
    assert segments.index.dtype == np.uint8
    assert segments.classes.tolist() == [SKY, CAT, CAT]


@pytest.mark.parametrize("ignore_label", [255, SKY])
def test_semantic_label_derived_from_the_panoptic_one_has_void_for_crowds(tmp_path, ignore_label):
    tiny_panoptic.write(tmp_path)
    record = tiny_panoptic.record(tmp_path)
    segments = read_semantic_segments(record, num_classes=3, ignore_label=ignore_label)
    assert segments.classes.tolist() == [SKY, CAT]  # both cats are one segment; the ignore label is a file's
    expected = [[0] * 6, [0, 1, 1, 1, 1, 255], [0, 1, 1, 1, 255, 255], [255] * 6]
    np.testing.assert_array_equal(segments.class_map(void=255), expected)


def test_semantic_label_of_its_own_comes_first(tmp_path):
    Image.fromarray(np.array([[2, 255], [0, 2]], np.uint8)).save(tmp_path / "sem.png")
    record = tiny_panoptic.record(tmp_path, sem_seg_file_name=str(tmp_path / "sem.png"))
    segments = read_semantic_segments(record, num_classes=3, ignore_label=255)
    assert segments.classes.tolist() == [SKY, ROAD]
    np.testing.assert_array_equal(segments.index, [[2, 0], [1, 2]])


def test_the_ignore_label_may_be_smaller_than_the_classes(tmp_path):
    Image.fromarray(np.array([[0, 1, 2]], np.uint8)).save(tmp_path / "sem.png")
    record = {"file_name": "x.jpg", "sem_seg_file_name": str(tmp_path / "sem.png")}
    segments = read_semantic_segments(record, num_classes=3, ignore_label=0)
    assert segments.classes.tolist() == [1, 2]
    np.testing.assert_array_equal(segments.index, [[0, 1, 2]])


def test_a_painted_id_that_is_not_listed_names_file_and_id(tmp_path):
    tiny_panoptic.write(tmp_path)
    record = tiny_panoptic.record(tmp_path)
    del record["segments_info"][1]
    with pytest.raises(InputError, match=r"a_label\.png: pixels have the id 70000.*paint it 0"):
        read_panoptic_segments(record, num_classes=3)


def test_a_listed_id_that_is_not_painted_is_harmless(tmp_path):
    tiny_panoptic.write(tmp_path)
    record = tiny_panoptic.record(tmp_path)
    record["segments_info"].append({"id": 999, "category_id": ROAD, "iscrowd": 0})
    segments = read_panoptic_segments(record, num_classes=3)
    assert segments.classes.tolist() == [SKY, CAT, CAT, ROAD] and segments.index.max() == 3


def test_a_class_the_model_does_not_have_names_file_and_class(tmp_path):
    tiny_panoptic.write(tmp_path)
    with pytest.raises(
        InputError, match=r"a_label\.png: segment 70000 has class 1, .* 0\.\.0; .*NUM_CLASSES"
    ):
        read_panoptic_segments(tiny_panoptic.record(tmp_path), num_classes=1)
    Image.fromarray(np.array([[0, 3]], np.uint8)).save(tmp_path / "sem.png")
    record = {"file_name": "x.jpg", "sem_seg_file_name": str(tmp_path / "sem.png")}
    with pytest.raises(InputError, match=r"sem\.png: a pixel has class 3, .* 0\.\.2"):
        read_semantic_segments(record, num_classes=3, ignore_label=255)


def test_more_segments_than_a_byte_counts(tmp_path):
    ids = np.arange(1, 401).reshape(20, 20)
    write_id_map(tmp_path / "many.png", ids)
    infos = [{"id": int(key), "category_id": 0, "iscrowd": 0} for key in ids.ravel()]
    record = {"pan_seg_file_name": str(tmp_path / "many.png"), "segments_info": infos}
    index = read_panoptic_segments(record, num_classes=1).index
    np.testing.assert_array_equal(index, ids)
    assert index.dtype == np.uint16


def test_the_index_has_no_more_bytes_than_it_needs():
    assert [index_type(count) for count in (0, 255, 256, 65535, 65536)] == [
        *[np.uint8] * 2,
        *[np.uint16] * 2,
        np.int32,
    ]


def test_a_label_of_another_size_names_both_files():
    require_same_size((4, 6), (4, 6), "a_label.png", "a.jpg")
    with pytest.raises(
        InputError, match=r"a_label\.png: the label is 6×4 pixels, but its image a\.jpg is 4×6"
    ):
        require_same_size((4, 6), (6, 4), "a_label.png", "a.jpg")


def test_a_record_without_any_label_is_refused():
    with pytest.raises(InputError, match=r"a\.jpg: its record names neither"):
        read_semantic_segments({"file_name": "a.jpg"}, num_classes=3, ignore_label=255)
