"""What a user can get wrong: every case ends in one line with what, where and the mend, and exit code 2."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import cv2
import pytest
import torch
from detectron2.modeling import build_model
from toy_run import CONFIG, arguments, exit_code, forget_datasets, render

from mask_former.data.id_map import read_id_map, write_id_map
from pisr_maskformer.config import add_pisr_config

ROOT = CONFIG.parent.parent.parent


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("datasets"))


@pytest.fixture
def data(scenes: Path, tmp_path: Path) -> Path:
    """A copy of the data set that a test may spoil."""
    shutil.copytree(scenes / "toy", tmp_path / "data/toy")
    return tmp_path / "data"


def refused(capfd: pytest.CaptureFixture[str], data: Path, command: list[str]) -> str:
    """The error line of a command that must fail; nothing of a traceback comes with it."""
    assert exit_code(data, command) == 2
    stdout, stderr = capfd.readouterr()
    assert "Traceback" not in stdout + stderr
    lines = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, stderr
    return lines[0]


def first_image(data: Path) -> Path:
    return sorted((data / "toy/train").iterdir())[0]


def spoil_all(data: Path, spoil: Callable[[Path], None]) -> None:
    for path in (data / "toy/train").iterdir():
        spoil(path)


def test_missing_image(capfd: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
    spoil_all(data, Path.unlink)
    line = refused(capfd, data, arguments(tmp_path / "run"))
    assert str(data / "toy/train") in line and ".jpg" in line


def test_unreadable_image_in_a_worker_process(
    capfd: pytest.CaptureFixture[str], data: Path, tmp_path: Path
) -> None:
    spoil_all(data, lambda path: path.write_bytes(path.read_bytes()[:20]))
    line = refused(capfd, data, arguments(tmp_path / "run", DATALOADER__NUM_WORKERS=1))
    assert str(data / "toy/train") in line


def test_label_with_an_id_that_the_json_does_not_have(
    capfd: pytest.CaptureFixture[str], data: Path, tmp_path: Path
) -> None:
    for path in (data / "toy/annotations/panoptic_train").iterdir():
        ids = read_id_map(path)
        ids[:8, :8] = 987654
        write_id_map(path, ids)
    line = refused(capfd, data, arguments(tmp_path / "run"))
    assert "987654" in line and "panoptic_train" in line


def test_label_of_another_size(capfd: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
    spoil_all(data, lambda path: cv2.imwrite(str(path), cv2.imread(str(path))[:-5]) and None)
    line = refused(capfd, data, arguments(tmp_path / "run"))
    assert "64" in line and "59" in line


def test_wrong_number_of_classes(capfd: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
    line = refused(capfd, data, arguments(tmp_path / "run", MODEL__SEM_SEG_HEAD__NUM_CLASSES=11))
    assert "NUM_CLASSES is 11" in line and "set it to 12" in line


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"SOLVER__BASE_LRR": 0.1}, "did you mean SOLVER.BASE_LR"),
        ({"SOLVER__BASE_LR": "fast"}, "SOLVER.BASE_LR"),
        ({"SOLVER__OPTIMIZER": "ADAMM"}, "ADAMW, SGD"),
        ({"INPUT__DATASET_MAPPER_NAME": "panoptic"}, "mask_former_panoptic"),
        ({"SOLVER__AMP__ENABLED": True, "SOLVER__AMP__DTYPE": "half"}, "float16, bfloat16"),
        ({"DATASETS__TRAIN": "('toy_trian',)"}, "toy_train"),
        ({"MODEL__MASK_FORMER__TRANSFORMER_IN_FEATURE": "res9"}, "res5"),
        ({"MODEL__MASK_FORMER__NHEADS": 5}, "divisible by MODEL.MASK_FORMER.NHEADS"),
        ({"MODEL__MASK_FORMER__DEC_LAYERS": 0}, "DEC_LAYERS is 0"),
    ],
)
def test_configuration(
    capfd: pytest.CaptureFixture[str], data: Path, tmp_path: Path, overrides: dict[str, object], expected: str
) -> None:
    assert expected in refused(capfd, data, arguments(tmp_path / "run", **overrides))


def test_missing_configuration_file(capfd: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
    line = refused(capfd, data, arguments(tmp_path / "run", config=tmp_path / "none.yaml"))
    assert str(tmp_path / "none.yaml") in line


def test_weights_of_another_architecture(
    capfd: pytest.CaptureFixture[str], data: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "other.pth"
    torch.save({"encoder.weight": torch.zeros(3)}, weights)
    line = refused(capfd, data, arguments(tmp_path / "run", MODEL__WEIGHTS=weights))
    assert str(weights) in line and "architecture" in line


def test_missing_weights(capfd: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
    line = refused(capfd, data, arguments(tmp_path / "run", MODEL__WEIGHTS=tmp_path / "none.pth"))
    assert str(tmp_path / "none.pth") in line and "MODEL.WEIGHTS" in line


def test_evaluation_without_weights(capfd: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
    assert "MODEL.WEIGHTS" in refused(capfd, data, arguments(tmp_path / "run", "--eval-only"))


def test_evaluation_with_backbone_weights_alone(
    capfd: pytest.CaptureFixture[str], data: Path, tmp_path: Path
) -> None:
    from mask_former.config import load_config

    pairs = arguments(tmp_path)[2:]
    forget_datasets()
    with mock.patch.dict("os.environ", {"DETECTRON2_DATASETS": str(data)}):
        model = build_model(load_config(CONFIG, pairs, extend=[add_pisr_config]))
    torch.save(model.backbone.state_dict(), tmp_path / "imagenet.pth")
    command = arguments(tmp_path / "run", "--eval-only", MODEL__WEIGHTS=tmp_path / "imagenet.pth")
    line = refused(capfd, data, command)
    assert "not a checkpoint of this model" in line and "sem_seg_head" in line


def test_evaluation_of_a_run_without_checkpoint(
    capfd: pytest.CaptureFixture[str], data: Path, tmp_path: Path
) -> None:
    line = refused(capfd, data, arguments(tmp_path / "run", "--eval-only", "--resume"))
    assert f"{tmp_path / 'run'} holds no checkpoint" in line


def test_unknown_test_set_is_refused_before_training(
    capfd: pytest.CaptureFixture[str], data: Path, tmp_path: Path
) -> None:
    line = refused(capfd, data, arguments(tmp_path / "run", DATASETS__TEST="('toy_vall',)"))
    assert "toy_vall" in line and "toy_val" in line
    assert not (tmp_path / "run/metrics.json").exists()


def test_folder_without_write_permission(
    capfd: pytest.CaptureFixture[str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:  # what a folder without rights does to anyone but root
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tools.project.tempfile.TemporaryFile", refuse)
    line = refused(capfd, data, arguments(tmp_path / "run"))
    assert f"cannot write to {tmp_path / 'run'}: Permission denied" in line


def test_unwritable_output_folder(capfd: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    line = refused(capfd, data, arguments(tmp_path / "file/run"))
    assert str(tmp_path / "file/run") in line and "choose another folder" in line


def test_no_data_set(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = refused(capfd, tmp_path / "nowhere", arguments(tmp_path / "run"))
    assert "panoptic_train.json" in line and "DETECTRON2_DATASETS" in line


def test_annotations_that_are_not_json(capfd: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
    path = data / "toy/annotations/panoptic_train.json"
    path.write_text(path.read_text()[:200])
    assert str(path) in refused(capfd, data, arguments(tmp_path / "run"))


def test_unknown_category(capfd: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
    path = data / "toy/annotations/panoptic_train.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segments_info"][0]["category_id"] = 4711
    path.write_text(json.dumps(content))
    line = refused(capfd, data, arguments(tmp_path / "run"))
    assert str(path) in line and "4711" in line


def test_the_tool_itself_prints_the_line_and_exits_with_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "tools/train_net.py", "--config-file", str(tmp_path / "none.yaml")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .startswith(f"error: cannot read configuration {tmp_path / 'none.yaml'}")
    )
    assert "Traceback" not in done.stderr
