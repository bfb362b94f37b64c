"""tools/predict.py: with a stub for the model, and once with a real tiny one."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mask_former.data.catalog import dataset_ids, dataset_metadata
from mask_former.data.id_map import read_id_map
from mask_former.errors import InputError, run_cli
from mask_former.prediction import Predictor, class_metadata, panoptic_map
from tests.tiny import DATASET, THINGS, tiny_config, tiny_model
from tools.predict import find_images, main


def write_picture(path: Path, height: int = 40, width: int = 60) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def config_file(tmp_path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(
        tiny_config({"INPUT.MIN_SIZE_TEST": 64, "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": True}).dump()
    )
    return path


def left_half_is_a_thing(rgb: np.ndarray) -> dict:
    ids = torch.zeros(rgb.shape[:2], dtype=torch.int32)
    ids[:, : rgb.shape[1] // 2] = 1
    return {"panoptic_seg": (ids, [{"id": 1, "isthing": True, "category_id": THINGS[0]}])}


def run(
    config_file: Path, *arguments: object, predict=left_half_is_a_thing, weights: object = "unused"
) -> int:
    fixed = ["--config-file", config_file, "--weights", weights]
    return main([str(a) for a in (*fixed, *arguments)], build=lambda cfg, weights: predict)


def test_pictures_png_and_json(config_file, tmp_path):
    write_picture(tmp_path / "in" / "b.png")
    write_picture(tmp_path / "in" / "deep" / "er" / "a.JPG", 30, 50)
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    assert run(config_file, "--input", tmp_path / "in", "--output", tmp_path / "out") == 0

    content = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    assert [image["id"] for image in content["images"]] == ["b", "a"]
    assert [entry["file_name"] for entry in content["annotations"]] == ["b.png", "a.png"]
    dataset_id = dataset_ids(dataset_metadata(DATASET))[THINGS[0]]
    assert content["annotations"][1]["segments_info"] == [
        {"id": 1, "category_id": dataset_id, "iscrowd": 0, "area": 30 * 25, "bbox": [0, 0, 25, 30]}
    ]
    assert {c["id"]: c["isthing"] for c in content["categories"]}[dataset_id] == 1
    ids = read_id_map(tmp_path / "out" / "panoptic" / "a.png")
    assert ids.shape == (30, 50) and (ids == 1).sum() == 30 * 25
    with Image.open(tmp_path / "out" / "overlays" / "a.jpg") as overlay:
        assert overlay.size == (50, 30)


def test_pictures_of_one_name_from_two_folders(config_file, tmp_path):
    pictures = [write_picture(tmp_path / side / "a.png") for side in ("left", "right")]
    assert run(config_file, "--input", *pictures, "--output", tmp_path / "out") == 0
    assert sorted(os.listdir(tmp_path / "out" / "overlays")) == ["left__a.jpg", "right__a.jpg"]


def test_a_bad_picture_is_named_and_the_others_go_on(config_file, tmp_path, capfd):
    write_picture(tmp_path / "in" / "c.png")
    (tmp_path / "in" / "b.jpg").write_bytes(b"not a picture")
    write_picture(tmp_path / "in" / "a.bmp")
    assert run(config_file, "--input", tmp_path / "in", "--output", tmp_path / "out") == 1
    errors = [line for line in capfd.readouterr().err.splitlines() if "error:" in line]
    assert len(errors) == 2
    assert f"{tmp_path}/in/b.jpg: cannot be decoded" in errors[0]
    assert "1 of 3 pictures failed" in errors[1]
    assert sorted(os.listdir(tmp_path / "out" / "panoptic")) == ["a.png", "c.png"]


def test_earlier_results_are_no_input(config_file, tmp_path):
    write_picture(tmp_path / "a.png")
    for _ in range(2):
        assert run(config_file, "--input", tmp_path, "--output", tmp_path / "out") == 0
    assert os.listdir(tmp_path / "out" / "overlays") == ["a.jpg"]


def test_find_images_once_each_in_order(tmp_path):
    for name in ("b.webp", "A.PNG", "sub/c.JpEg"):
        write_picture(tmp_path / name)
    (tmp_path / "d.gif").touch()
    named = tmp_path / "d.gif"
    found = find_images([named, tmp_path, tmp_path / "b.webp"], tmp_path / "out")
    assert [path.name for path in found] == ["d.gif", "A.PNG", "b.webp", "c.JpEg"]


@pytest.mark.parametrize(
    ("inputs", "message"), [(["nowhere"], "nowhere: no such file or folder"), (["empty"], "no pictures in")]
)
def test_no_input(config_file, tmp_path, inputs, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        run(config_file, "--input", *(tmp_path / name for name in inputs), "--output", tmp_path / "out")


def test_output_that_cannot_be_written(config_file, tmp_path):
    write_picture(tmp_path / "a.png")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write to"):
        run(config_file, "--input", tmp_path / "a.png", "--output", tmp_path / "file" / "out")


def test_missing_weights_are_one_line(config_file, tmp_path, capfd):
    picture = write_picture(tmp_path / "a.png")
    arguments = ["--config-file", config_file, "--weights", tmp_path / "no.pth", "--input", picture]
    arguments += ["--output", tmp_path / "out"]
    assert run_cli(lambda: main([str(a) for a in arguments])) == 2
    error = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(error) == 1 and "no.pth" in error[0]


def test_semantic_model_gives_a_segment_per_class():
    scores = torch.zeros(5, 2, 3)
    scores[4, 0], scores[2, 1] = 1, 1
    ids, segments = panoptic_map({"sem_seg": scores})
    assert ids.tolist() == [[5, 5, 5], [3, 3, 3]]
    assert segments == [{"id": 3, "category_id": 2}, {"id": 5, "category_id": 4}]
    with pytest.raises(InputError, match="no map"):
        panoptic_map({"instances": None})


def test_panoptic_result_comes_before_the_semantic_one():
    result = left_half_is_a_thing(np.zeros((2, 4, 3), np.uint8))
    ids, segments = panoptic_map({**result, "sem_seg": torch.zeros(5, 2, 4)})
    assert ids.tolist() == [[1, 1, 0, 0]] * 2
    assert segments == result["panoptic_seg"][1]


def test_classes_of_a_configuration_without_data(caplog):
    cfg = tiny_config({"DATASETS.TRAIN": (), "DATASETS.TEST": ()})
    metadata = class_metadata(cfg)
    assert metadata.stuff_classes == [f"class {c}" for c in range(5)]
    assert len(metadata.stuff_colors) == 5
    assert "names no data set" in caplog.text


def test_classes_of_another_data_set_are_refused():
    cfg = tiny_config({"DATASETS.TEST": ("coco_2017_val_panoptic",)})
    with pytest.raises(InputError, match="does not have the 5 classes"):
        class_metadata(cfg)


def test_predictor_equals_the_model(tmp_path):
    model = tiny_model().eval()
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    cfg = tiny_config({"INPUT.MIN_SIZE_TEST": 64, "INPUT.FORMAT": "RGB"})
    predictor = Predictor(cfg, tmp_path / "weights.pth")
    rgb = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    image = torch.from_numpy(rgb.transpose(2, 0, 1).copy())
    with torch.no_grad():
        expected = model([{"image": image, "height": 64, "width": 96}])[0]["sem_seg"]
    assert torch.equal(predictor(rgb)["sem_seg"], expected)
    assert predictor(rgb[:32, :48])["sem_seg"].shape == (5, 32, 48), "resized for the model and back"
    with pytest.raises(InputError, match="image of 9000×1 pixels is too narrow"):
        predictor(np.zeros((1, 9000, 3), np.uint8))


def test_predictor_respects_the_channel_order(tmp_path):
    torch.save({"model": tiny_model().state_dict()}, tmp_path / "weights.pth")
    rgb = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    results = [
        Predictor(tiny_config({"INPUT.MIN_SIZE_TEST": 64, "INPUT.FORMAT": order}), tmp_path / "weights.pth")(
            image
        )
        for order, image in (("RGB", rgb), ("BGR", rgb[..., ::-1]))
    ]
    assert torch.equal(results[0]["sem_seg"], results[1]["sem_seg"])


@pytest.mark.parametrize("kept", ["backbone.", "sem_seg_head."])
def test_predictor_refuses_a_part_of_a_model(tmp_path, kept):
    state = {name: value for name, value in tiny_model().state_dict().items() if name.startswith(kept)}
    torch.save({"model": state}, tmp_path / "part.pth")
    with pytest.raises(InputError, match=r"part\.pth is not a checkpoint of this model: .*missing.*use a"):
        Predictor(tiny_config(), tmp_path / "part.pth")


def test_predictor_does_without_the_criterions_entries(tmp_path):
    state = tiny_model().state_dict()
    assert any(name.startswith("criterion.") for name in state)
    state = {name: value for name, value in state.items() if not name.startswith("criterion.")}
    torch.save({"model": state}, tmp_path / "weights.pth")
    assert all(
        name.startswith("criterion.")
        for name in Predictor(tiny_config(), tmp_path / "weights.pth").report.missing
    )


def test_predictor_needs_no_imagenet_weights_of_a_timm_backbone(tmp_path):
    timm = {"MODEL.BACKBONE.NAME": "build_timm_backbone", "MODEL.TIMM.NAME": "resnet18"}
    trained = tiny_model(timm).state_dict()
    torch.save({"model": trained}, tmp_path / "weights.pth")
    cfg = tiny_config({**timm, "MODEL.TIMM.WEIGHTS": str(tmp_path / "gone.pth")})
    cfg.freeze()
    predictor = Predictor(cfg, tmp_path / "weights.pth")
    name = "backbone.body.conv1.weight"
    assert torch.equal(predictor.model.state_dict()[name], trained[name])
    assert cfg.MODEL.TIMM.WEIGHTS.endswith("gone.pth"), "the caller's configuration stays as it is"


def test_predictor_refuses_a_device_that_is_not_there(tmp_path):
    for device in ("cuda:77", "abacus"):
        with pytest.raises(InputError, match=f"MODEL.DEVICE '{device}' cannot be used"):
            Predictor(tiny_config({"MODEL.DEVICE": device}), tmp_path / "weights.pth")


@pytest.mark.parametrize("panoptic", [True, False])
def test_end_to_end_with_a_tiny_model(config_file, tmp_path, panoptic):
    torch.save({"model": tiny_model().state_dict()}, tmp_path / "weights.pth")
    write_picture(tmp_path / "in" / "a.png", 64, 64)
    write_picture(tmp_path / "in" / "b.png", 48, 64)
    arguments = ["--config-file", config_file, "--weights", tmp_path / "weights.pth", "--device", "cpu"]
    arguments += ["--input", tmp_path / "in", "--output", tmp_path / "out"]
    arguments += ["MODEL.MASK_FORMER.TEST.PANOPTIC_ON", panoptic]
    assert main([str(a) for a in arguments]) == 0
    annotations = json.loads((tmp_path / "out" / "panoptic.json").read_text())["annotations"]
    for name, size, annotation in (("a", (64, 64), annotations[0]), ("b", (48, 64), annotations[1])):
        ids = read_id_map(tmp_path / "out" / "panoptic" / f"{name}.png")
        assert ids.shape == size
        assert sorted(s["id"] for s in annotation["segments_info"]) == sorted(set(ids.ravel().tolist()) - {0})
        assert sum(s["area"] for s in annotation["segments_info"]) == (ids > 0).sum()
        if not panoptic:
            assert (ids > 0).all(), "a semantic map leaves no pixel out"
        assert (tmp_path / "out" / "overlays" / f"{name}.jpg").stat().st_size > 0
