import cv2
import numpy as np
import pytest
from PIL import Image

from mask_former.data.id_map import (
    MAX_ID,
    find_runs,
    measure_segments,
    read_class_map,
    read_id_map,
    read_image_size,
    read_rgb_image,
    unique_ids,
    write_id_map,
)
from mask_former.errors import InputError
from tests.real_data import real_data


def test_ids_survive_the_png_up_to_the_largest(tmp_path):
    ids = np.array([[0, 1, 255], [256, 65536, MAX_ID]])
    write_id_map(tmp_path / "label.png", ids)
    read = read_id_map(tmp_path / "label.png")
    assert read.dtype == np.int32
    np.testing.assert_array_equal(read, ids)
    assert [path.name for path in tmp_path.iterdir()] == ["label.png"]  # no temporary file is left


def test_the_coding_is_cocos(tmp_path):
    write_id_map(tmp_path / "label.png", np.array([[1 + 256 * 2 + 65536 * 3]]))
    assert Image.open(tmp_path / "label.png").getpixel((0, 0)) == (1, 2, 3)


@pytest.mark.parametrize("bad", [-1, MAX_ID + 1])
def test_an_id_that_does_not_fit_is_not_written(tmp_path, bad):
    with pytest.raises(ValueError, match=str(MAX_ID)):
        write_id_map(tmp_path / "label.png", np.array([[bad]]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.zeros((2, 2), np.uint8), r"1 channel\(s\) of uint8"),
        (np.zeros((2, 2, 4), np.uint8), r"4 channel\(s\) of uint8"),
        (np.zeros((2, 2, 3), np.uint16), r"3 channel\(s\) of uint16"),
    ],
)
def test_a_png_of_another_kind_is_refused(tmp_path, pixels, words):
    cv2.imwrite(str(tmp_path / "label.png"), pixels)
    with pytest.raises(InputError, match=words):
        read_id_map(tmp_path / "label.png")


@pytest.mark.parametrize("read", [read_id_map, read_rgb_image, read_class_map, read_image_size])
def test_files_that_cannot_be_read_are_named(tmp_path, read):
    with pytest.raises(InputError, match=r"nowhere\.png: no such file"):
        read(tmp_path / "nowhere.png")
    for name, data in (("text.png", b"not an image"), ("empty.png", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=f"{name}: cannot be decoded"):
            read(tmp_path / name)


@pytest.mark.parametrize("format", ["png", "jpg"])
def test_an_image_cut_short_is_refused_and_not_shown_in_part(tmp_path, format):
    whole, part = tmp_path / f"whole.{format}", tmp_path / f"part.{format}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    cv2.imwrite(str(whole), noise)
    part.write_bytes(whole.read_bytes()[: int(0.9 * whole.stat().st_size)])
    with pytest.raises(InputError, match="cut short"):
        read_rgb_image(part)


def test_grey_alpha_and_palette_images_become_rgb(tmp_path):
    red = Image.new("RGB", (3, 2), (255, 0, 0))
    images = {
        "rgb": (red, (255, 0, 0)),
        "grey": (Image.new("L", (3, 2), 7), (7, 7, 7)),
        "alpha": (Image.new("RGBA", (3, 2), (255, 0, 0, 10)), (255, 0, 0)),
        "palette": (red.convert("P"), (255, 0, 0)),
    }
    for name, (image, expected) in images.items():
        image.save(tmp_path / f"{name}.png")
        pixels = read_rgb_image(tmp_path / f"{name}.png")
        assert pixels.shape == (2, 3, 3) and pixels.dtype == np.uint8, name
        assert (pixels == expected).all(), name


def test_exif_orientation_is_applied_to_pixels_and_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    stored = np.zeros((8, 16, 3), np.uint8)
    stored[:, :8] = 255  # the left half, which is the top half upright
    Image.fromarray(stored).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    pixels = read_rgb_image(tmp_path / "turned.jpg")
    assert pixels.shape == (16, 8, 3)
    assert pixels[:8].min() > 200 and pixels[8:].max() < 50
    assert read_image_size(tmp_path / "turned.jpg") == (16, 8)


def test_class_maps_keep_the_values_of_the_file(tmp_path):
    values = np.array([[0, 1], [254, 255]], np.uint8)
    palette = Image.fromarray(values, mode="P")
    palette.putpalette([200, 100, 50] * 256)  # the indices count, not the colours
    palette.save(tmp_path / "palette.png")
    Image.fromarray(values).save(tmp_path / "grey.png")
    for name in ("palette.png", "grey.png"):
        np.testing.assert_array_equal(read_class_map(tmp_path / name), values)
    wide = np.array([[0, 300], [65535, 2]], np.uint16)
    cv2.imwrite(str(tmp_path / "wide.png"), wide)
    np.testing.assert_array_equal(read_class_map(tmp_path / "wide.png"), wide)


def test_a_class_map_in_colours_is_refused(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "colours.png")
    with pytest.raises(InputError, match="one channel"):
        read_class_map(tmp_path / "colours.png")


def test_unique_ids_equals_numpy():
    maps = np.random.default_rng(0).integers(0, 5, (3, 7, 9)) * 70000
    for ids in (*maps, np.full((2, 2), 4), np.zeros((0, 3), int)):
        values, positions = unique_ids(ids)
        np.testing.assert_array_equal(values, np.unique(ids))
        np.testing.assert_array_equal(values[positions], ids)
        assert positions.shape == ids.shape


def test_runs_go_through_rows_and_can_be_painted_anew():
    runs = find_runs(np.array([[7, 7, 2], [2, 2, 7]]))
    assert runs.values.tolist() == [2, 7]
    assert runs.positions.tolist() == [1, 0, 1] and runs.lengths.tolist() == [2, 3, 1]
    painted = runs.paint(np.array([5, 0], np.uint8))
    np.testing.assert_array_equal(painted, [[0, 0, 5], [5, 5, 0]])
    assert painted.dtype == np.uint8


def test_areas_and_boxes_counted_by_hand():
    ids = np.array([[0, 5, 5, 0], [9, 0, 5, 0], [9, 9, 0, 5]])
    assert measure_segments(ids) == {5: (4, [1, 0, 3, 3]), 9: (3, [0, 1, 2, 2])}
    assert measure_segments(np.zeros((2, 2), int)) == {}


def test_jpegs_decode_as_with_pillow():
    for path in sorted(real_data("coco", "val2017").glob("*.jpg"))[:5]:
        ours = read_rgb_image(path).astype(int)
        theirs = np.asarray(Image.open(path).convert("RGB")).astype(int)
        assert np.abs(ours - theirs).max() <= 4, path.name  # decoders may round differently
        assert read_image_size(path) == ours.shape[:2]


def test_areas_of_real_labels_agree_with_their_json():
    from mask_former.data.coco_panoptic import load_coco_panoptic

    root = real_data("coco")
    pngs = root / "annotations" / "panoptic_val2017"
    records = load_coco_panoptic(root / "val2017", root / "annotations" / "panoptic_val2017.json", pngs)
    for record in records[:5]:
        measured = measure_segments(read_id_map(record["pan_seg_file_name"]))
        assert measured == {
            segment["id"]: (segment["area"], segment["bbox"]) for segment in record["segments_info"]
        }
