"""`--executor debug`: a run in the launcher's own process, with the code as it is."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.launcher import ROOT, Launcher
from tests.toy_run import TINY, render


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    data = render(tmp_path_factory.mktemp("datasets"))
    launcher = Launcher(ROOT, {**os.environ, "DETECTRON2_DATASETS": str(data), "OMP_NUM_THREADS": "1"})
    yield launcher
    launcher.close()


def test_it_trains_and_a_configuration_from_elsewhere_is_kept_whole(
    launcher: Launcher, tmp_path: Path
) -> None:
    config, run = tmp_path / "mine.yaml", tmp_path / "run"
    config.write_text(f"_BASE_: {ROOT}/configs/toy/maskformer_tiny.yaml\nSEED: 11\n")
    options = TINY | {"SOLVER.MAX_ITER": "2", "DATASETS.TEST": "()"}
    pairs = [text for pair in options.items() for text in pair]
    command = [
        "--config",
        str(config),
        "--gpus",
        "0",
        "--executor",
        "debug",
        "--run-dir",
        str(run),
        "--",
        *pairs,
    ]
    code, said = launcher(*command)
    assert code == 0, said[-3000:]
    assert json.loads((run / "finished.json").read_text())["max_iter"] == 2
    assert json.loads((run / "run.json").read_text())["starts"][0]["seed"] == 11
    assert "MAX_ITER: 300\n" in (run / "submitted.yaml").read_text()  # without the command line's values


def test_missing_data_and_several_processes_are_told_in_one_line(launcher: Launcher, tmp_path: Path) -> None:
    """The data is looked for where the job runs, which may not be where it was submitted."""
    config = str(ROOT / "configs/toy/maskformer_tiny.yaml")
    base = ("--config", config, "--gpus", "0", "--executor", "debug", "--run-dir", str(tmp_path / "run"))
    code, said = launcher(*base, "--", "DATASETS.COCO_PANOPTIC.toy_train.JSON", "nowhere.json")
    assert code == 2 and "nowhere.json is not here: the job will need it" in said
    (line,) = [line for line in said.splitlines() if line.startswith("error: ") and "(rank" not in line]
    assert "nowhere.json: no such file; check its path and $DETECTRON2_DATASETS" in line
    assert f"(rank 0 on {os.uname().nodename})" in said
    assert (tmp_path / "run/traces").exists()
    code, said = launcher(*base, "--tasks", "2")
    assert code == 2 and "--executor debug is one process" in said
