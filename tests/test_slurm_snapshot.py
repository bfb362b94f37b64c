"""A copy of the code: whole, named by its content, and telling the revision of its original."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from mask_former.errors import InputError
from mask_former.training.git_state import git_state
from slurm import snapshot
from slurm.snapshot import code_files, snapshot_name, take_snapshot


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A little project under git, with a change that is not committed and a file that is ignored."""
    root = tmp_path / "project"
    files = {"mask_former/__init__.py": "a = 1\n", "tools/x.py": "x", "slurm/y é.py": "y", "data/big": "d"}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / ".gitignore").write_text("__pycache__/\n*.secret\n")
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *command], check=True, timeout=60)
    (root / "mask_former/__init__.py").write_text("a = 2\n")
    (root / "mask_former/new.py").write_text("new\n")
    (root / "tools/key.secret").write_text("s")
    return root


def test_the_copy_holds_the_code_as_it_is_and_nothing_else(code: Path, tmp_path: Path) -> None:
    copy = take_snapshot(tmp_path / "copies", code)
    assert copy == tmp_path / "copies" / snapshot_name(code)
    found = {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()}
    assert found - {".revision.json", ".revision.patch"} == set(code_files(code))
    assert set(code_files(code)) == {
        "mask_former/__init__.py",
        "mask_former/new.py",
        "slurm/y é.py",
        "tools/x.py",
    }
    assert (copy / "mask_former/__init__.py").read_text() == "a = 2\n"


def test_the_copy_tells_the_revision_and_changes_of_its_original(code: Path, tmp_path: Path) -> None:
    before = git_state(code)
    copy = take_snapshot(tmp_path / "copies", code)
    (code / "mask_former/__init__.py").write_text("a = 3\n")
    assert git_state(copy) == before
    assert before.branch == "main" and before.dirty and b"+a = 2" in (before.patch or b"")


def test_the_same_code_is_copied_once_and_other_code_beside_it(code: Path, tmp_path: Path) -> None:
    first = take_snapshot(tmp_path / "copies", code)
    marker = first / "tools/x.py"
    marker.write_text("not copied again")
    assert take_snapshot(tmp_path / "copies", code) == first and marker.read_text() == "not copied again"
    (code / "tools/x.py").write_text("other")
    second = take_snapshot(tmp_path / "copies", code)
    assert second != first and marker.read_text() == "not copied again"
    assert not [path for path in (tmp_path / "copies").iterdir() if path.name.startswith(".")]


def test_without_git_the_code_folders_are_copied_whole(code: Path, tmp_path: Path) -> None:
    shutil.rmtree(code / ".git")
    (code / "tools/__pycache__").mkdir()
    (code / "tools/__pycache__/x.pyc").write_text("")
    assert "tools/key.secret" in code_files(code) and "data/big" not in code_files(code)
    assert not any("__pycache__" in name for name in code_files(code))
    copy = take_snapshot(tmp_path / "copies", code)
    said = json.loads((copy / ".revision.json").read_text())
    assert said["revision"] is None and "git" in said["reason"]
    assert git_state(copy).reason == said["reason"]


def test_a_full_disk_leaves_nothing_and_is_told_in_one_line(
    code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_file = shutil.copy2

    def full(source: Path, target: Path) -> None:
        if source.name == "x.py":
            raise OSError(28, "No space left on device")
        copy_file(source, target)

    monkeypatch.setattr(snapshot.shutil, "copy2", full)
    with pytest.raises(InputError, match="No space left on device; make room"):
        take_snapshot(tmp_path / "copies", code)
    assert not list((tmp_path / "copies").iterdir())


def test_a_damaged_record_is_a_reason(code: Path, tmp_path: Path) -> None:
    copy = take_snapshot(tmp_path / "copies", code)
    (copy / ".revision.json").write_text("{")
    assert "cannot be read" in (git_state(copy).reason or "")
