"""What git says of the code, asked of real repositories."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from mask_former.training import git_state as module
from mask_former.training.git_state import git_state

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", *identity, "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(autouse=True)
def no_settings_of_the_user(monkeypatch, tmp_path):
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, str(tmp_path / "no_git_config"))


@pytest.fixture
def repository(tmp_path) -> Path:
    folder = tmp_path / "code"
    (folder / "mask_former").mkdir(parents=True)
    (folder / "mask_former" / "__init__.py").write_text("old\nlines\n")
    (folder / "binary.bin").write_bytes(bytes(range(256)))
    (folder / "gone.txt").write_text("soon\n")
    (folder / ".gitignore").write_text("ignored/\n")
    git(folder, "init", "-q", "-b", "trunk")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    return folder


def files(folder: Path) -> dict[str, tuple[bytes, bool]]:
    paths = [path for path in folder.rglob("*") if path.is_file() and ".git/" not in str(path)]
    return {
        str(path.relative_to(folder)): (
            path.read_bytes(),
            os.access(path, os.X_OK) and bool(path.stat().st_mode & 0o100),
        )
        for path in paths
    }


def test_a_clean_checkout(repository, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    state = git_state(repository)
    assert state.revision == git(repository, "rev-parse", "HEAD")
    assert (state.branch, state.dirty, state.patch, state.reason) == ("trunk", False, b"", None)
    git(repository, "checkout", "-q", "--detach")
    assert git_state(repository).branch is None


def test_the_patch_makes_the_running_code_from_the_revision(repository, tmp_path):
    (repository / "mask_former" / "__init__.py").write_text("new\nlines\nwithout end")
    (repository / "binary.bin").write_bytes(bytes(range(255, -1, -1)))
    (repository / "gone.txt").unlink()
    new = {
        "plain.py": "a = 1\nb = 2\n",
        "unended.py": "a = 1\nb = 2",
        "empty.py": "",
        "newline.py": "\n",
        "sub/with space.py": "x\n",
        'quo"te\\ü\tü.py': "y\n",
    }
    for name, text in new.items():
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).write_text(text)
    (repository / "plain.py").chmod(0o755)
    state = git_state(repository)
    assert state.dirty
    clone, patch = tmp_path / "clone", tmp_path / "changes.patch"
    patch.write_bytes(state.patch)
    git(tmp_path, "clone", "-q", str(repository), str(clone))
    git(clone, "checkout", "-q", state.revision)
    assert files(clone) != files(repository)
    git(clone, "apply", str(patch))
    assert files(clone) == files(repository)
    assert files(clone)["plain.py"] == (b"a = 1\nb = 2\n", True)


def test_what_is_left_out(repository):
    outputs = {
        "ignored/a.txt": b"a",
        "slurm-1.out": b"step 1",
        ".env": b"TOKEN=1",
        ".idea/x.xml": b"x",
        "runs/one/run.lock": b"",
        "runs/one/config.yaml": b"a",
        "runs/one/inference/b.json": b"b",
    }
    for name, content in outputs.items():
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_bytes(content)
    assert git_state(repository).patch == b""
    (repository / "weights.pth").write_bytes(b"PK\0\0")
    (repository / "large.json").write_bytes(b"1" * 1_000_000)
    (repository / "runs" / "notes.txt").write_bytes(b"kept\n")
    patch = git_state(repository).patch.decode()
    assert patch.splitlines()[:2] == [
        "# untracked and not here (no text, or large): b/large.json",
        "diff --git a/runs/notes.txt b/runs/notes.txt",
    ]
    assert patch.splitlines()[-1] == "# untracked and not here (no text, or large): b/weights.pth"


def test_a_large_patch_is_cut_with_a_note(repository, monkeypatch):
    (repository / "gone.txt").write_text("line\n" * 100_000)
    whole = git_state(repository).patch
    assert len(whole) > 500_000
    monkeypatch.setattr(module, "MAX_PATCH", 2000)
    patch = git_state(repository).patch
    assert patch[:2000] == whole[:2000]
    assert patch[2000:] == b"\n# cut short here: the whole is larger than 2000 bytes\n"
    assert git_state(repository).patch == patch


def test_many_untracked_files_are_counted(repository, monkeypatch):
    monkeypatch.setattr(module, "MAX_UNTRACKED_FILES", 2)
    for index in range(5):
        (repository / f"{index}.txt").write_text("x\n")
    patch = git_state(repository).patch
    assert patch.count(b"diff --git") == 2
    assert patch.endswith(b"# untracked and not here: 3 more files\n")


def test_the_users_settings_do_not_change_the_patch(repository, monkeypatch, tmp_path):
    (repository / "gone.txt").write_text("later\n")
    patch = git_state(repository).patch
    (tmp_path / "settings").write_text(
        "[color]\n ui = always\n[diff]\n noprefix = true\n external = false\n[core]\n abbrev = 5\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "settings"))
    assert git_state(repository).patch == patch


def test_it_is_the_codes_repository_not_the_callers(repository, monkeypatch, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    git(other, "commit", "-qm", "other", "--allow-empty")
    monkeypatch.chdir(other)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))  # as in a hook
    state = git_state(repository)
    monkeypatch.delenv("GIT_DIR")
    assert state.revision == git(repository, "rev-parse", "HEAD")


def test_an_installed_copy_inside_another_checkout_has_no_revision(repository):
    copy = repository / "ignored" / "site-packages"
    shutil.copytree(repository / "mask_former", copy / "mask_former")
    state = git_state(copy)
    assert (state.revision, state.dirty, state.patch) == (None, None, None)
    assert "mask_former/__init__.py" in state.reason and "\n" not in state.reason


def test_no_checkout_and_no_commit(tmp_path):
    (tmp_path / "mask_former").mkdir()
    (tmp_path / "mask_former" / "__init__.py").touch()
    assert "not a git repository" in git_state(tmp_path).reason
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "mask_former")
    state = git_state(tmp_path)
    assert state.revision is None and state.reason.startswith("git rev-parse: ")


def test_without_git(repository, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    state = git_state(repository)
    assert state.revision is None
    assert state.reason == "git cannot be run: No such file or directory"


def test_without_room_for_temporary_files(repository, monkeypatch):
    def is_full() -> None:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(module.tempfile, "TemporaryFile", is_full)
    assert git_state(repository).reason == "No usable temporary directory found"


def test_a_checkout_of_another_user(repository, monkeypatch):
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    if subprocess.run(["git", "-C", repository, "rev-parse", "HEAD"], capture_output=True).returncode == 0:
        pytest.skip("this git does not look at owners")
    state = git_state(repository)
    assert state.revision is None
    assert "dubious ownership" in state.reason and "\n" not in state.reason


def test_git_that_hangs_is_ended_with_what_it_started(repository, monkeypatch, tmp_path):
    """Only `git diff` hangs here, in a process that git started: the revision is known all the same."""
    real, folder = shutil.which("git"), tmp_path / "bin"
    folder.mkdir()
    script = f'#!/bin/sh\ncase "$3" in diff) sleep 60; echo $$ >{tmp_path}/woke;; esac\nexec {real} "$@"\n'
    (folder / "git").write_text(script)
    (folder / "git").chmod(0o755)
    revision = git(repository, "rev-parse", "HEAD")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(module, "GIT_SECONDS", 1.0)
    start = time.monotonic()
    state = git_state(repository)
    assert time.monotonic() - start < 20
    assert (state.revision, state.dirty) == (revision, None)
    assert state.reason == "git diff took longer than 1 s"
