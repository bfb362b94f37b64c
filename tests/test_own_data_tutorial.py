"""The tutorial docs/own_data.md: its own commands, run in its order in a folder like a fresh checkout."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mask_former.data.id_map import read_id_map, read_rgb_image
from mask_former.data.toy_scenes import render_scene

REPOSITORY = Path(__file__).resolve().parent.parent
TUTORIAL = REPOSITORY / "docs" / "own_data.md"
STEPS = 40  # two rows of losses


def commands() -> list[str]:
    """The shell blocks of the tutorial."""
    return re.findall(r"^```sh\n(.*?)^```$", TUTORIAL.read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all commands of the tutorial were run."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("mask_former", "pisr_maskformer", "configs", "tools"):
        (folder / name).symlink_to(REPOSITORY / name)
    environment = {key: value for key, value in os.environ.items() if key != "DETECTRON2_DATASETS"}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}",
        "STEPS": str(STEPS),
        "CUDA_VISIBLE_DEVICES": "",
    }
    for command in commands():
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_every_step_has_its_command() -> None:
    text = TUTORIAL.read_text()
    assert len(commands()) == 7 == len(re.findall(r"^## \d", text, re.MULTILINE))
    tools = re.findall(r"^ *python (tools/\w+\.py)", "".join(commands()), re.MULTILINE)
    assert tools == [f"tools/{name}.py" for name in ("make_panoptic", "validate_dataset")] + [
        "tools/train_net.py",
        "tools/train_net.py",
        "tools/predict.py",
    ]


@pytest.mark.slow
def test_the_data_set_is_made_and_found_fit(checkout: Path) -> None:
    report = read(checkout / "datasets/my/report.json")
    assert report["errors"] == 0
    assert [(data["name"], data["images"]) for data in report["data_sets"]] == [
        ("my_train", 48),
        ("my_val", 12),
    ]
    names = read(checkout / "datasets/my/names.json")
    for data in report["data_sets"]:
        assert [(c["name"], c["kind"] == "thing") for c in data["classes"]] == [
            (name["name"], bool(name["isthing"])) for name in sorted(names, key=lambda name: name["id"])
        ]
        assert data["void"] < 0.05 * data["pixels"]  # specks and crowds
        count = {c["name"]: c["images"] for c in data["classes"]}
        assert count["water"] == count["road"] == data["images"]  # docs/toy_scenes.md: both in every image
    scene = render_scene(seed=0, split="val", index=7, size=128)
    made = read(checkout / "datasets/my/panoptic_val.json")["annotations"][7]
    ids = read_id_map(checkout / "datasets/my/panoptic_val" / made["file_name"])
    segments = {segment["id"]: segment for segment in made["segments_info"]}
    assert len(segments) == sum(not segment.iscrowd for segment in scene.segments)
    for segment in scene.segments:
        [key] = set(ids[scene.ids == segment.id].tolist())
        if not segment.iscrowd:
            assert segments[key]["category_id"] == segment.category_id
            assert (segments[key]["area"], segments[key]["bbox"]) == (segment.area, segment.bbox)


@pytest.mark.slow
def test_it_learns_and_the_evaluation_is_repeated(checkout: Path) -> None:
    rows = [json.loads(line) for line in (checkout / "output/my/metrics.json").read_text().splitlines()]
    losses = [row["total_loss"] for row in rows if "total_loss" in row]
    assert len(losses) >= 2 and losses[-1] < 0.9 * losses[0]
    trained = read(checkout / "output/my/inference/my_val/metrics.json")
    again = read(checkout / "output/my_eval/inference/my_val/metrics.json")
    for task, key in (("panoptic_seg", "PQ"), ("sem_seg", "mIoU"), ("segm", "AP")):
        assert again[task][key] == pytest.approx(trained[task][key], rel=1e-6)
        assert 0 <= again[task][key] <= 100
    assert again["sem_seg"]["mIoU"] > 0


@pytest.mark.slow
def test_the_pictures_are_predicted_with_the_own_classes(checkout: Path) -> None:
    pictures = checkout / "output/my_pictures"
    content = read(pictures / "panoptic.json")
    names = read(checkout / "datasets/my/names.json")
    own = {name["id"]: name["name"] for name in names}
    assert {category["id"]: category["name"] for category in content["categories"]} == own
    assert len(content["annotations"]) == 12
    for annotation in content["annotations"]:
        ids = read_id_map(pictures / "panoptic" / annotation["file_name"])
        assert {segment["id"] for segment in annotation["segments_info"]} == set(ids[ids > 0].tolist())
        assert {segment["category_id"] for segment in annotation["segments_info"]} <= set(own)
        overlay = read_rgb_image(pictures / "overlays" / f"{Path(annotation['file_name']).stem}.jpg")
        assert overlay.shape == (128, 128, 3)
