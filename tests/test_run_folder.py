"""run.json and provenance/: an entry a start, a file a content, and warnings where a resume differs."""

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from detectron2.config import CfgNode, get_cfg

from mask_former.errors import InputError
from mask_former.training import run_folder
from mask_former.training.git_state import GitState, git_state
from mask_former.training.run_folder import record_start, warn_of_changes
from mask_former.training.run_lock import locked

CLEAN = GitState("1" * 40, "main", b"")


@pytest.fixture(autouse=True)
def code(monkeypatch) -> dict[str, GitState]:
    """The state of the code, which a test may change; git itself is asked in test_git_state.py."""
    state = {"now": CLEAN}
    monkeypatch.setattr(run_folder, "git_state", lambda output_marker: state["now"])
    return state


def config(*overrides: Any) -> CfgNode:
    cfg = get_cfg()
    cfg.merge_from_list(list(overrides))
    return cfg


def start(folder: Path, cfg: CfgNode | None = None, **changes: Any) -> dict[str, Any]:
    given = {
        "seed": 7,
        "world_size": 2,
        "start_iteration": 0,
        "samples_seen": 0,
        "data_checksum": "abc",
        "command": ["tools/train_net.py", "OUTPUT_DIR", "with space"],
    }
    return record_start(folder, cfg or config(), **{**given, **changes})


def starts(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "run.json").read_text())["starts"]


def test_an_entry_says_what_made_the_run(tmp_path):
    before = datetime.now(timezone.utc).replace(microsecond=0)
    folder = tmp_path / "new"
    entry = start(folder, start_iteration=40, samples_seen=640)
    assert starts(folder) == [entry]
    assert before <= datetime.fromisoformat(entry["time"]) <= datetime.now(timezone.utc)
    given = ("seed", "world_size", "start_iteration", "samples_seen", "data_checksum")
    assert [entry[key] for key in given] == [7, 2, 40, 640, "abc"]
    assert entry["command"] == "tools/train_net.py OUTPUT_DIR 'with space'"
    assert (entry["host"], entry["pid"]) == (socket.gethostname(), os.getpid())
    assert entry["working_directory"] == os.getcwd()
    assert entry["torch"] == torch.__version__ and sys.version.startswith(entry["python"])
    assert entry["git"] == {
        "revision": "1" * 40,
        "branch": "main",
        "dirty": False,
        "diff": None,
        "reason": None,
    }
    assert start(folder, command="python x.py")["command"] == "python x.py"


def test_each_content_is_kept_once_and_every_start_is_told(tmp_path, code):
    one, other = config(), config("SOLVER.BASE_LR", 0.5)
    code["now"] = GitState("1" * 40, "main", b"change 1\n")
    first = start(tmp_path, one)
    second = start(tmp_path, one, start_iteration=10)
    code["now"] = GitState("1" * 40, "main", b"change 2\n")
    third = start(tmp_path, other, start_iteration=20)
    assert starts(tmp_path) == [first, second, third]
    assert [entry["start_iteration"] for entry in starts(tmp_path)] == [0, 10, 20]
    kept = tmp_path / "provenance"
    assert (first["config"], first["git"]["diff"]) == (second["config"], second["git"]["diff"])
    assert (kept / first["git"]["diff"]).read_bytes() == b"change 1\n"
    assert (kept / third["git"]["diff"]).read_bytes() == b"change 2\n"
    for entry, cfg in ((first, one), (third, other)):
        assert yaml.safe_load((kept / entry["config"]).read_text()) == yaml.safe_load(cfg.dump())
    assert "torch==" in (kept / first["environment"]).read_text()
    names = sorted(path.name.split("_")[0] for path in kept.iterdir())
    assert names == ["config", "config", "environment", "git", "git"]


def test_without_a_revision_the_entry_says_why(tmp_path, code, caplog):
    code["now"] = GitState(reason="git cannot be run: No such file or directory")
    entry = start(tmp_path)
    assert (entry["git"]["revision"], entry["git"]["dirty"], entry["git"]["diff"]) == (None, None, None)
    assert entry["git"]["reason"] == "git cannot be run: No such file or directory"
    assert "git cannot be run" in caplog.text


@pytest.mark.parametrize(
    "content", ['{"starts": [{"seed": 1}', "", "[]", '{"starts": 3}', '{"starts": [1]}', "\xff"]
)
def test_a_damaged_run_json_is_kept_aside(tmp_path, caplog, content):
    for count in (1, 2):
        (tmp_path / "run.json").write_text(content, encoding="latin-1")
        caplog.clear()
        entry = start(tmp_path)
        assert starts(tmp_path) == [entry]
        [record] = caplog.records
        assert "run.json.damaged" in record.message
        kept = list(tmp_path.glob("run.json.damaged*"))
        assert len(kept) == count  # the earlier one is not overwritten
        assert {path.read_text(encoding="latin-1") for path in kept} == {content}


def test_what_a_later_version_adds_to_run_json_stays(tmp_path):
    (tmp_path / "run.json").write_text('{"starts": [{"seed": 1}], "note": "mine"}')
    entry = start(tmp_path)
    assert json.loads((tmp_path / "run.json").read_text()) == {"starts": [{"seed": 1}, entry], "note": "mine"}


def test_a_stop_while_writing_leaves_the_old_run_json(tmp_path, monkeypatch):
    entry = start(tmp_path)

    def stops(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stops)
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path)
    assert starts(tmp_path) == [entry]


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    entry = start(tmp_path)

    def is_full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", is_full)
    with pytest.raises(InputError, match="cannot write to OUTPUT_DIR .*: No space left on device; choose"):
        start(tmp_path)
    assert starts(tmp_path) == [entry]


def test_the_same_run_resumed_elsewhere_is_nothing_to_warn_of(tmp_path, caplog):
    assert warn_of_changes(tmp_path) == []
    start(tmp_path)
    assert warn_of_changes(tmp_path) == []
    there = config("OUTPUT_DIR", "/elsewhere", "DATALOADER.NUM_WORKERS", 9)
    start(tmp_path, there, start_iteration=10, samples_seen=20, world_size=4, command="other")
    assert warn_of_changes(tmp_path) == []
    assert not caplog.records


def test_every_difference_of_a_resume_is_one_line(tmp_path, code, caplog):
    start(tmp_path)
    code["now"] = GitState("2" * 40, "main", b"change\n")
    changed = config("SOLVER.BASE_LR", 0.5, "INPUT.MIN_SIZE_TRAIN", list(range(100)), "SEED", 8)
    changed.MODEL.NEW = CfgNode({"KEY": "x"})
    start(tmp_path, changed, seed=8, data_checksum="def")
    changes = warn_of_changes(tmp_path)
    assert changes[:3] == [
        "the data's checksum: abc -> def",
        "the seed: 7 -> 8",
        f"the code's revision: {'1' * 40} -> {'2' * 40}",
    ]
    assert changes[3].startswith("INPUT.MIN_SIZE_TRAIN: [800] -> [0, 1, 2, ") and len(changes[3]) < 150
    assert changes[4:] == ["MODEL.NEW.KEY: absent -> 'x'", "SOLVER.BASE_LR: 0.001 -> 0.5"]
    assert [record.message for record in caplog.records] == [
        f"this resume differs from the start before it in {change}" for change in changes
    ]


def test_other_uncommitted_changes_of_one_revision(tmp_path, code):
    start(tmp_path)
    code["now"] = GitState("1" * 40, "main", b"change\n")
    entry = start(tmp_path)
    assert warn_of_changes(tmp_path) == [f"the code's uncommitted changes: None -> {entry['git']['diff']}"]
    start(tmp_path)
    assert warn_of_changes(tmp_path) == []  # compared with the last start, not the first


def test_a_configuration_that_was_removed_is_said_to_be_missing(tmp_path):
    first = start(tmp_path)
    (tmp_path / "provenance" / first["config"]).unlink()
    start(tmp_path, config("SEED", 3))
    [change] = warn_of_changes(tmp_path)
    assert change.startswith("a configuration that cannot be compared: ") and first["config"] in change


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_runs_inside_the_checkout_do_not_make_it_dirty(tmp_path, monkeypatch):
    """A run's folder need not be ignored by git: its files grow, and are no change of the code."""
    code, other = tmp_path / "mask_former" / "__init__.py", tmp_path / "runs" / "two"
    code.parent.mkdir()
    code.write_text("a = 1\n")
    git = ["git", "-C", tmp_path, "-c", "user.name=A", "-c", "user.email=a@example.org"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *arguments], check=True)
    monkeypatch.setattr(run_folder, "git_state", partial(git_state, tmp_path))
    for folder in (tmp_path / "one", other, other):
        with locked(folder):
            assert start(folder)["git"]["dirty"] is False
            (folder / "results.json").write_text("{}")
    assert warn_of_changes(other) == []
    code.write_text("a = 2\n")
    with locked(other):
        entry = start(other)
    assert b"+a = 2\n" in (other / "provenance" / entry["git"]["diff"]).read_bytes()
    assert len(warn_of_changes(other)) == 1
