import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from fvcore.transforms.transform import CropTransform, HFlipTransform
from PIL import Image

from mask_former.config import add_mask_former_config, load_config
from mask_former.data.augmentations import PadToMultiple, crop_augmentations
from mask_former.data.coco_panoptic import load_coco_panoptic
from mask_former.data.id_map import read_rgb_image, write_id_map
from mask_former.data.mappers import MAPPERS, PanopticMapper, SemanticMapper, TestMapper, build_mapper
from mask_former.errors import InputError, is_input_error, one_line
from tests import tiny_panoptic
from tests.real_data import REPOSITORY, real_data
from tools.benchmarks.plain_loader import PlainPanopticMapper

SKY, CAT = 0, 1


@pytest.fixture
def record(tmp_path):
    tiny_panoptic.write(tmp_path)
    return tiny_panoptic.record(tmp_path)


def official_like(mapper: str, crop: int) -> CfgNode:
    """The keys that the published ADE20K configurations set under INPUT, at a size that suits a test."""
    cfg = get_cfg()
    add_mask_former_config(cfg)
    cfg.INPUT.DATASET_MAPPER_NAME = mapper
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MIN_SIZE_TRAIN = tuple(int(0.1 * k * crop) for k in range(5, 21))
    cfg.INPUT.MAX_SIZE_TRAIN = 4 * crop
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "choice"
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = crop, 4 * crop
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", (crop, crop)
    cfg.INPUT.COLOR_AUG_SSD = True
    cfg.INPUT.SIZE_DIVISIBILITY = crop
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 3
    return cfg


def check_training_sample(sample: dict, height: int, width: int) -> None:
    image, targets = sample["image"], sample["instances"]
    assert image.dtype == torch.uint8 and image.shape == (3, height, width) and image.is_contiguous()
    assert targets.image_size == (height, width)
    count = len(targets)
    assert targets.gt_masks.dtype == torch.bool and targets.gt_masks.shape == (count, height, width)
    assert targets.gt_classes.dtype == torch.int64 and targets.gt_classes.shape == (count,)
    assert targets.gt_masks.flatten(1).any(1).all()  # no target is empty
    assert targets.gt_masks.sum(0).max() <= 1 if count else True  # and no two overlap


@pytest.mark.parametrize("name", ["mask_former_panoptic", "mask_former_semantic"])
def test_samples_of_official_like_configurations(record, name):
    np.random.seed(0)
    mapper = build_mapper(official_like(name, 32), is_train=True)
    for _ in range(5):
        sample = mapper(record)
        check_training_sample(sample, 32, 32)
        assert (sample["height"], sample["width"]) == (4, 6)
        assert (sample["file_name"], sample["image_id"]) == (record["file_name"], 7)
        assert ("sem_seg" in sample) == (name == "mask_former_semantic")


def test_detr_samples_are_not_padded(record):
    cfg = official_like("detr_panoptic", 32)
    cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = "absolute_range", (384, 600)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.SIZE_DIVISIBILITY = (40,), 0
    np.random.seed(0)
    for _ in range(4):
        sample = build_mapper(cfg, is_train=True)(record)
        assert min(sample["image"].shape[1:]) == 40
        check_training_sample(sample, *sample["image"].shape[1:])


def test_panoptic_targets_by_hand(record):
    targets = PanopticMapper(augmentations=[], num_classes=3)(record)["instances"]
    assert targets.gt_classes.tolist() == [SKY, CAT, CAT]
    for mask, segment_id in zip(targets.gt_masks, (10, 70000, 3), strict=True):  # not 9, the crowd; not void
        np.testing.assert_array_equal(mask, segment_id == tiny_panoptic.IDS)


def test_segments_that_the_crop_removed_are_no_targets(record):
    crop = CropTransform(0, 1, 3, 3)  # rows 1..3, columns 0..2: the second cat is outside
    sample = PanopticMapper(augmentations=[crop], num_classes=3)(record)
    check_training_sample(sample, 3, 3)
    assert sample["instances"].gt_classes.tolist() == [SKY, CAT]
    expected = [[[1, 0, 0], [1, 0, 0], [0, 0, 0]], [[0, 1, 1], [0, 1, 1], [0, 0, 0]]]
    np.testing.assert_array_equal(sample["instances"].gt_masks.int(), expected)


@pytest.mark.parametrize("mapper", [PanopticMapper, SemanticMapper])
def test_a_crop_without_any_segment_is_kept_with_no_targets(record, mapper):
    sample = mapper(augmentations=[CropTransform(0, 3, 3, 1)], num_classes=3)(record)
    check_training_sample(sample, 1, 3)
    assert sample["instances"].gt_masks.shape == (0, 1, 3)


def test_an_image_without_ground_truth_is_kept(tmp_path):
    _, unlabelled = load_coco_panoptic(*tiny_panoptic.write(tmp_path))
    sample = PanopticMapper(augmentations=[PadToMultiple(4)], num_classes=3)(unlabelled)
    check_training_sample(sample, 4, 4)
    assert len(sample["instances"]) == 0 and sample["instances"].gt_masks.shape == (0, 4, 4)


def test_a_crop_of_crowd_only_has_no_targets(record):
    sample = PanopticMapper(augmentations=[CropTransform(4, 2, 2, 2)], num_classes=3)(record)
    assert len(sample["instances"]) == 0


def test_image_and_masks_are_flipped_together(record):
    plain = PanopticMapper(augmentations=[], num_classes=3)(record)
    flipped = PanopticMapper(augmentations=[HFlipTransform(6)], num_classes=3)(record)
    assert torch.equal(flipped["image"], plain["image"].flip(2))
    assert torch.equal(flipped["instances"].gt_masks, plain["instances"].gt_masks.flip(2))


def test_padding_is_128_in_the_image_and_void_in_every_label(record):
    sample = SemanticMapper(augmentations=[PadToMultiple(8)], num_classes=3)(record)
    check_training_sample(sample, 8, 8)
    assert (sample["image"][:, 4:] == 128).all() and (sample["image"][:, :, 6:] == 128).all()
    assert not sample["instances"].gt_masks[:, 4:].any() and not sample["instances"].gt_masks[:, :, 6:].any()
    assert sample["sem_seg"].dtype == torch.int64
    assert (sample["sem_seg"][4:] == 255).all() and (sample["sem_seg"][:, 6:] == 255).all()


@pytest.mark.parametrize("name", ["mask_former_panoptic", "mask_former_semantic"])
def test_the_size_without_padding_is_that_of_a_crop_smaller_than_the_padded_image(record, name):
    cfg = official_like(name, 640)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.CROP.SIZE = (320,), (640, 352)  # 4×6 becomes 320×480, then 320×352
    cfg.INPUT.COLOR_AUG_SSD = False
    np.random.seed(0)
    sample = build_mapper(cfg, is_train=True)(record)
    check_training_sample(sample, 640, 640)
    assert sample["unpadded_size"] == (320, 352)
    grey = (sample["image"] == 128).all(0)
    assert grey[320:].all() and grey[:, 352:].all()
    assert not grey[:320, :352].any(), "the image has no such pixel, so all that is grey is padding"


def test_the_size_without_padding_is_the_images_own_when_there_is_none(record):
    cfg = official_like("detr_panoptic", 32)
    cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = "absolute_range", (384, 600)
    cfg.INPUT.SIZE_DIVISIBILITY = 0
    detr = build_mapper(cfg, is_train=True)
    fits = PanopticMapper(augmentations=[PadToMultiple(2)], num_classes=3)
    untouched = PanopticMapper(augmentations=[], num_classes=3)
    for mapper in (detr, fits, untouched):
        sample = mapper(record)
        assert sample["unpadded_size"] == tuple(sample["image"].shape[1:])
    assert untouched(record)["unpadded_size"] == (4, 6)


def test_semantic_targets_by_hand(record, tmp_path):
    label = np.full((4, 6), 255, np.uint8)
    label[0], label[3, 2] = SKY, CAT
    Image.fromarray(label).save(tmp_path / "sem.png")
    sample = SemanticMapper(augmentations=[], num_classes=3)(
        {**record, "sem_seg_file_name": str(tmp_path / "sem.png")}
    )
    np.testing.assert_array_equal(sample["sem_seg"], label)
    assert sample["instances"].gt_classes.tolist() == [SKY, CAT]
    np.testing.assert_array_equal(sample["instances"].gt_masks, [label == SKY, label == CAT])


def test_masks_stay_on_their_pixels_through_resize_crop_flip_and_padding(tmp_path):
    """A pixel that still has exactly a segment's colour must be in that segment's mask, and in no other."""
    ids = np.repeat(np.repeat(np.arange(1, 13).reshape(3, 4), 21, axis=0), 17, axis=1)
    # colours on a circle in red and green: no mixture of some, as resizing makes, equals another
    angle = np.arange(13) * 2 * np.pi / 12
    red, green, blue = 120 + 110 * np.cos(angle), 120 + 110 * np.sin(angle), 0 * angle
    colors = np.stack([red, green, blue], axis=-1).astype(np.uint8)
    Image.fromarray(colors[ids]).save(tmp_path / "a.png")
    write_id_map(tmp_path / "label.png", ids)
    record = {
        "file_name": str(tmp_path / "a.png"),
        "pan_seg_file_name": str(tmp_path / "label.png"),
        "segments_info": [{"id": key, "category_id": key - 1, "iscrowd": 0} for key in range(1, 13)],
    }
    augmentations = crop_augmentations(
        min_sizes=[40, 63, 100, 131],
        max_size=400,
        sampling="choice",
        crop=("absolute", (64, 64)),
        single_category_max_area=0.9,
        color_jitter=False,
        flip="horizontal",
        pad_divisor=64,
    )
    mapper = PanopticMapper(augmentations=augmentations, num_classes=12)
    np.random.seed(0)
    for _ in range(12):
        sample = mapper(record)
        image, targets = sample["image"], sample["instances"]
        owner = torch.zeros(image.shape[1:], dtype=torch.int64)
        for mask, label in zip(targets.gt_masks, targets.gt_classes, strict=True):
            owner[mask] = label + 1
        for key in range(1, 13):
            pure = (image == torch.from_numpy(colors[key])[:, None, None]).all(0)
            assert (owner[pure] == key).all()
        assert torch.equal(owner == 0, image[2] == 128)  # the padding, and nothing else, is void


@pytest.mark.parametrize("masks_first", [False, True])
def test_samples_are_those_of_the_straightforward_mapper(tmp_path, masks_first):
    """Same draws, same targets, same pixels up to rounding: what is fast changes nothing."""
    pixels = np.random.default_rng(0)
    Image.fromarray(pixels.integers(0, 256, (45, 60, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    ids = pixels.integers(0, 300, (9, 12)).repeat(5, 0).repeat(5, 1) * 1009
    write_id_map(tmp_path / "label.png", ids)
    infos = [{"id": int(k), "category_id": int(k) % 7, "iscrowd": int(k % 5 == 0)} for k in np.unique(ids)]
    record = {
        "file_name": str(tmp_path / "a.png"),
        "pan_seg_file_name": str(tmp_path / "label.png"),
        "segments_info": [info for info in infos if info["id"]],
    }
    # of these sizes no centre of a new pixel falls on the border of two old ones, where either would do
    same = {"min_sizes": [30, 54, 60, 66], "max_size": 110, "crop": ("absolute", (64, 64)), "pad_divisor": 64}
    plain = PlainPanopticMapper(
        **same, color_jitter=False, pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3, masks_first=masks_first
    )
    ours = PanopticMapper(
        augmentations=crop_augmentations(
            **same, sampling="choice", single_category_max_area=1.0, color_jitter=False, flip="horizontal"
        ),
        num_classes=7,
    )
    for seed in range(12):
        samples = []
        for mapper in (plain, ours):
            np.random.seed(seed)
            samples.append(mapper(record))
        expected, found = samples
        assert torch.equal(found["instances"].gt_classes, expected["instances"].gt_classes)
        assert torch.equal(found["instances"].gt_masks, expected["instances"].gt_masks)
        difference = (found["image"] - expected["image"]).abs()
        assert difference.max() <= 1 and (difference > 0).float().mean() < 0.1  # many halves to round here


def test_bgr_reverses_the_channels(record):
    rgb = PanopticMapper(augmentations=[], num_classes=3)(record)["image"]
    bgr = PanopticMapper(augmentations=[], num_classes=3, image_format="BGR")(record)["image"]
    assert torch.equal(bgr, rgb.flip(0)) and not torch.equal(bgr, rgb)
    cfg = official_like("mask_former_panoptic", 32)
    cfg.INPUT.FORMAT = "L"
    with pytest.raises(InputError, match="INPUT.FORMAT is 'L', but must be RGB or BGR"):
        build_mapper(cfg, is_train=True)


def test_the_test_mapper_keeps_the_original_size_and_the_record(record):
    cfg = official_like("mask_former_panoptic", 32)
    sample = build_mapper(cfg, is_train=False)(record)
    assert sample["image"].shape == (3, 32, 48) and sample["image"].dtype == torch.uint8
    assert (sample["height"], sample["width"]) == (4, 6)
    assert "instances" not in sample
    assert sample["segments_info"] == record["segments_info"] and sample["image_id"] == 7
    wrong_size = {**record, "height": 400, "width": 600}  # the image is trusted, not the JSON
    assert TestMapper(min_size=0, max_size=99)(wrong_size)["height"] == 4


def test_the_image_id_is_the_stem_where_the_record_has_none(record):
    del record["image_id"]
    assert TestMapper(min_size=0, max_size=99)(record)["image_id"] == "a"
    assert PanopticMapper(augmentations=[], num_classes=3)(record)["image_id"] == "a"


def test_a_label_of_another_size_is_refused(record, tmp_path):
    write_id_map(tmp_path / "pngs" / "a_label.png", tiny_panoptic.IDS.T)
    with pytest.raises(
        InputError, match=r"a_label\.png: the label is 4×6 pixels, but its image .*a\.png is 6×4"
    ):
        PanopticMapper(augmentations=[], num_classes=3)(record)


def test_the_label_that_was_read_is_the_one_named(record, tmp_path):
    Image.fromarray(np.zeros((6, 4), np.uint8)).save(tmp_path / "sem.png")
    both = {**record, "sem_seg_file_name": str(tmp_path / "sem.png")}
    with pytest.raises(InputError, match=r"sem\.png: the label is 4×6 pixels, but its image .*a\.png is 6×4"):
        SemanticMapper(augmentations=[], num_classes=3)(both)
    assert len(PanopticMapper(augmentations=[], num_classes=3)(both)["instances"]) == 3


def test_the_test_mapper_takes_an_image_as_it_takes_a_file(record):
    mapper = TestMapper(min_size=8, max_size=99, image_format="BGR")
    from_file, from_image = mapper(record), mapper.from_image(read_rgb_image(record["file_name"]))
    assert set(from_image) == {"image", "height", "width"}
    assert torch.equal(from_image["image"], from_file["image"]) and from_image["image"].shape == (3, 8, 12)
    assert (from_image["height"], from_image["width"]) == (4, 6)


def test_an_image_too_narrow_for_the_test_size_is_named(record, tmp_path):
    Image.new("RGB", (9000, 1)).save(tmp_path / "line.png")
    with pytest.raises(InputError, match=r"line\.png: an image of 9000×1 pixels is too narrow"):
        TestMapper(min_size=32, max_size=64)({**record, "file_name": str(tmp_path / "line.png")})


@pytest.mark.parametrize("name", ["mask_former_panoptic", "mask_former_semantic"])
def test_an_image_too_narrow_to_train_on_is_named(record, tmp_path, name):
    Image.new("RGB", (9000, 1)).save(tmp_path / "line.png")
    write_id_map(tmp_path / "line_label.png", np.full((1, 9000), 10))
    line = {"file_name": str(tmp_path / "line.png"), "pan_seg_file_name": str(tmp_path / "line_label.png")}
    mapper = build_mapper(official_like(name, 32), is_train=True)
    with pytest.raises(InputError, match=r"line\.png: an image of 9000×1 pixels is too narrow"):
        mapper({**record, **line})


def test_panoptic_training_on_semantic_labels_is_refused(record):
    del record["pan_seg_file_name"]
    with pytest.raises(InputError, match=r"a\.png: its data set has no panoptic labels"):
        PanopticMapper(augmentations=[], num_classes=3)(record)


@pytest.mark.parametrize("name", ["mask_former_panotic", "test"])
def test_a_name_that_cannot_train_lists_those_that_can(name):
    with pytest.raises(InputError, match="one of mask_former_semantic, mask_former_panoptic, detr_panoptic$"):
        build_mapper(official_like(name, 32), is_train=True)


def test_all_names_are_registered():
    assert sorted(MAPPERS) == ["detr_panoptic", "mask_former_panoptic", "mask_former_semantic", "test"]
    with pytest.raises(ValueError, match="PanopticMapper is for training"):
        MAPPERS["mask_former_panoptic"].from_config(official_like("mask_former_panoptic", 32), is_train=False)


def test_an_input_error_of_a_loader_worker_is_still_one_line(record):
    del record["segments_info"][0]
    dataset = [record]
    mapper = PanopticMapper(augmentations=[], num_classes=3)
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=1, collate_fn=mapper)
    with pytest.raises(InputError) as caught:
        next(iter(loader))
    assert is_input_error(caught.value)
    assert one_line(caught.value).startswith(record["pan_seg_file_name"])


@pytest.mark.parametrize(
    ("config", "size", "mapper"),
    [("maskformer_r50", 640, PanopticMapper), ("maskformer_r50_semantic", 512, SemanticMapper)],
)
def test_the_published_configurations(record, config, size, mapper):
    cfg = load_config(REPOSITORY / "configs" / "ade20k" / f"{config}.yaml")
    built = build_mapper(cfg, is_train=True)
    assert type(built) is mapper and built.num_classes == 150
    first, *_, pad = built.augmentations.augs
    resize, crop = first.resize, first.crop
    assert list(resize.short_edge_length) == [int(0.1 * k * size) for k in range(5, 21)]
    assert resize.max_size == 4 * size and not resize.is_range
    assert crop.crop_size == (size, size) and pad.divisor == size
    check_training_sample(built(record), size, size)
    assert build_mapper(cfg, is_train=False)(record)["image"].shape[1:] == (size, size * 3 // 2)


def test_real_coco_images():
    root = real_data("coco")
    pngs = root / "annotations" / "panoptic_val2017"
    records = load_coco_panoptic(root / "val2017", root / "annotations" / "panoptic_val2017.json", pngs)
    np.random.seed(0)
    cfg = official_like("mask_former_panoptic", 128)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 133
    for name in ("mask_former_panoptic", "mask_former_semantic"):
        cfg.INPUT.DATASET_MAPPER_NAME = name
        mapper = build_mapper(cfg, is_train=True)
        for record in records[:4]:
            check_training_sample(mapper(record), 128, 128)
