"""Malformed input through the real tools: one line with what, where and the mend, exit code 2, no traceback.
What a run has saved stays as it is, byte for byte, and no code of a file runs.

The cases are rows of the tables in tests/malformed/. Unusual input that is valid comes last: it must work.
"""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from mask_former.checkpoint_reading import read_checkpoint
from mask_former.data.id_map import read_image_size, read_rgb_image, write_id_map
from mask_former.data.mappers import PanopticMapper
from mask_former.errors import run_cli
from tests.malformed import annotations, checkpoints, configurations, images, labels, predictions, unusual
from tests.malformed.case import Case, Place, command, resume
from tests.resumable import RunServer
from tests.toy_run import CONFIG, exit_code, forget_datasets, forget_loggers, render, train
from tools import predict

ROOT = CONFIG.parent.parent.parent
TRAIN_NET = [
    *images.CASES,
    *labels.CASES,
    *annotations.CASES,
    *configurations.CASES,
    *checkpoints.CASES,
]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The data set, with class maps too, and the run that every case gets a copy of."""
    root = tmp_path_factory.mktemp("original")
    place = Place(render(root / "data"), root / "run", root / "files")
    labels.write_class_maps(place)
    place.files.mkdir()
    train(place.data, command(place.run))
    for path in set(place.run.glob("*.pth")) - {place.weights}:
        path.unlink()
    (place.run / "last_checkpoint").write_text(place.weights.name)  # so that there is something to resume
    return place


@pytest.fixture
def place(original: Place, tmp_path: Path) -> Iterator[Place]:
    copy = Place(tmp_path / "data", tmp_path / "run", tmp_path / "files")
    for folder, its in ((original.data, copy.data), (original.run, copy.run), (original.files, copy.files)):
        shutil.copytree(folder, its)
    yield copy
    shutil.rmtree(tmp_path)  # pytest would keep the copies of all cases


def saved(run: Path) -> dict[Path, bytes]:
    """What a command that fails must leave as it is: checkpoints and results."""
    files = [*run.glob("*.pth"), run / "last_checkpoint", *run.glob("inference/**/*.json")]
    return {path: path.read_bytes() for path in files}


def predict_exit_code(data: Path, arguments: list[str]) -> int:
    forget_datasets()
    forget_loggers()
    with mock.patch.dict(os.environ, {"DETECTRON2_DATASETS": str(data)}):
        return run_cli(lambda: predict.main(arguments))


def check_refusal(
    case: Case, place: Place, tool: Callable[[Path, list[str]], int], capfd: pytest.CaptureFixture[str]
) -> None:
    """Spoil, run, and look at everything a user would see."""
    arguments = case.spoil(place) or resume(place)
    before = saved(place.run)
    code = tool(place.data, arguments)
    stdout, stderr = capfd.readouterr()
    lines = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(lines) == 1, stderr
    assert "Traceback" not in stdout + stderr
    assert [part for part in case.expected(place) if part not in lines[0]] == [], lines[0]
    assert len(lines[0]) < 700
    assert saved(place.run) == before
    assert not (place.files / "executed").exists(), "code of a file was run"


def refused(capfd: pytest.CaptureFixture[str], data: Path, arguments: list[str]) -> str:
    """The error line of a run that must fail."""
    code = exit_code(data, arguments)
    stdout, stderr = capfd.readouterr()
    assert code == 2 and "Traceback" not in stdout + stderr, stderr
    (line,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
    return line


def by_name(case: Case) -> str:
    return case.name


@pytest.mark.parametrize("case", TRAIN_NET, ids=by_name)
def test_training_and_evaluation(case: Case, place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    with labels.semantic_set(place):
        check_refusal(case, place, exit_code, capfd)


@pytest.mark.parametrize("case", predictions.CASES, ids=by_name)
def test_prediction(case: Case, place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    check_refusal(case, place, predict_exit_code, capfd)


def test_predict_goes_on_after_pictures_that_cannot_be_read(
    place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second, *_ = place.images
    images.cut_short(first)
    images.become_folder(second)
    third = place.data / "toy/train/thin.png"
    images.thin(third)
    arguments = predictions.predict(place)
    assert predict_exit_code(place.data, arguments) == 1
    _, stderr = capfd.readouterr()
    lines = [line.split("error: ")[1] for line in stderr.splitlines() if "error: " in line]
    assert "Traceback" not in stderr and len(lines) == 3
    assert lines[0].startswith(f"{first}: cannot be decoded")
    assert lines[1].startswith(f"{third}: an image of 5000×1 pixels is too narrow")
    assert lines[2] == "2 of 4 pictures failed, see above"
    assert len(list((place.files / "out/overlays").iterdir())) == 2


def test_the_tool_itself_prints_the_line_and_exits_with_2(tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"
    done = subprocess.run(
        [sys.executable, "tools/train_net.py", "--config-file", str(missing)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith(f"error: cannot read configuration {missing}")
    assert "Traceback" not in done.stderr


def test_folder_without_write_permission(
    capfd: pytest.CaptureFixture[str], place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:  # what a folder without rights does to anyone but root
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tools.project.tempfile.TemporaryFile", refuse)
    line = f"cannot write to {place.run}: Permission denied"
    check_refusal(Case("no rights", lambda place: None, (line, "mend its rights")), place, exit_code, capfd)


@pytest.mark.parametrize("name", unusual.IMAGES)
def test_unusual_images_come_out_right_and_upright(name: str, tmp_path: Path) -> None:
    file_name, write, pixels = unusual.IMAGES[name]
    write(tmp_path / file_name)
    read = read_rgb_image(tmp_path / file_name)
    assert read.dtype == np.uint8 and read.shape == pixels.shape
    assert np.abs(read.astype(int) - pixels).max() <= 3  # JPEG rounds
    assert read_image_size(tmp_path / file_name) == pixels.shape[:2]


def test_targets_lie_on_the_upright_image(tmp_path: Path) -> None:
    _, write, pixels = unusual.IMAGES["JPEG turned by EXIF"]
    write(tmp_path / "a.jpg")
    red = pixels[..., 0] > 128
    write_id_map(tmp_path / "a.png", np.where(red, 7, 9))
    segments = [{"id": 7, "category_id": 2}, {"id": 9, "category_id": 0}]
    record = {"file_name": str(tmp_path / "a.jpg"), "pan_seg_file_name": str(tmp_path / "a.png")}
    sample = PanopticMapper(augmentations=[], num_classes=3)({**record, "segments_info": segments})
    assert sample["image"].shape == (3, *pixels.shape[:2])
    assert sample["instances"].gt_classes.tolist() == [2, 0]
    mask = sample["instances"].gt_masks[0]
    assert (mask.numpy() == red).all() and (sample["image"][0][mask] > 250).all()


def test_an_image_of_one_pixel_is_predicted(place: Place) -> None:
    picture = place.files / "one.png"
    images.one_pixel(picture)
    assert predict_exit_code(place.data, predictions.predict(place, input=picture)) == 0
    assert read_image_size(place.files / "out/panoptic/one.png") == (1, 1)


@pytest.mark.skipif(
    not hasattr(torch.serialization, "set_crc32_options"), reason="this torch always saves checksums"
)
def test_weights_saved_without_checksums_load(place: Place) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        arguments = checkpoints.evaluation_of(place, checkpoints.content(lambda checkpoint: checkpoint))
    finally:
        torch.serialization.set_crc32_options(True)
    assert exit_code(place.data, arguments) == 0


def test_weights_that_are_no_numbers_load_with_a_warning(
    place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = checkpoints.evaluation_of(place, checkpoints.tensors(lambda t: t * float("nan")))
    assert exit_code(place.data, arguments) == 0
    stdout, stderr = capfd.readouterr()
    assert f"{place.files / 'weights.pth'}: " in stdout + stderr and "entries hold NaN (" in stdout + stderr


@pytest.mark.parametrize("name", unusual.DATA_SETS)
def test_unusual_data_sets_are_trained_on(name: str, place: Place) -> None:
    unusual.DATA_SETS[name](place)
    assert exit_code(place.data, resume(place)) == 0
    assert (place.run / "model_final.pth").is_file()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for a few checkpoints; only root may make one."""
    folder = tmp_path / "small disk"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", folder], capture_output=True
    ).returncode:
        pytest.skip("needs the right to mount a small tmpfs (root)")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)  # the log is still open


@pytest.fixture
def small_quota() -> Iterator[None]:
    """No file may be larger than a megabyte: less than a checkpoint, more than everything else."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_disk_full_at_a_checkpoint(
    capfd: pytest.CaptureFixture[str], original: Place, small_disk: Path
) -> None:
    run, endless = small_disk / "run", {"SOLVER__MAX_ITER": 40, "SOLVER__KEEP_CHECKPOINTS": 0}
    options = {"SOLVER__CHECKPOINT_PERIOD": 1, "DATASETS__TEST": "()", "LOG__TENSORBOARD": False}
    line = refused(capfd, original.data, command(run, **options, **endless))
    assert f"no room for checkpoint {run}/model_" in line and "No space left on device" in line
    assert "earlier checkpoints are as they were" in line and "--resume" in line
    checkpoints = sorted(run.glob("model_*.pth"))
    assert len(checkpoints) > 1 and (run / "last_checkpoint").read_text() == checkpoints[-1].name
    for path in checkpoints:
        read_checkpoint(path)
    for path in checkpoints[:-1]:
        path.unlink()  # room
    done = len(checkpoints)
    assert exit_code(original.data, command(run, "--resume", **options, SOLVER__MAX_ITER=done + 1)) == 0
    assert torch.load(run / "model_final.pth", weights_only=True)["iteration"] == done


def test_a_file_larger_than_allowed(
    capfd: pytest.CaptureFixture[str], place: Place, small_quota: None
) -> None:
    before = saved(place.run)
    line = refused(capfd, place.data, command(place.run, "--resume"))
    assert f"no room for checkpoint {place.run}/model_" in line and "File too large" in line
    assert saved(place.run) == before


def test_read_only_folder(capfd: pytest.CaptureFixture[str], place: Place, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    line = refused(capfd, place.data, command(small_disk / "run"))
    assert f"cannot write to {small_disk / 'run'}: Read-only file system" in line and "choose another" in line


def test_killed_loader_worker(original: Place, tmp_path: Path) -> None:
    server, run, log = RunServer(original.data), tmp_path / "run", tmp_path / "log"
    options = {"SOLVER__MAX_ITER": 100_000, "DATALOADER__NUM_WORKERS": 1, "SOLVER__CHECKPOINT_PERIOD": 5}
    process = server.start(command(run, **options, DATASETS__TEST="()"), log)
    while not (run / "last_checkpoint").exists():
        time.sleep(0.01)
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    assert server.wait(process) == 2
    server.close()
    said = log.read_text()
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert (
        "a data-loader worker was killed" in line and "DATALOADER.NUM_WORKERS" in line and "--resume" in line
    )
    assert "Traceback" not in said
    read_checkpoint(run / (run / "last_checkpoint").read_text())
