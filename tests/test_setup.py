"""Set-up: what is installed, what is left alone, and what a second or an interrupted call does."""

import base64
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import pytest

from tools import _path, complete_env, install_detectron2, setup_env
from tools.setup_env import ROOT, SetupError

WHEEL_FILES = {
    "detectron2/__init__.py": b"__version__ = 'fake'\n",
    "detectron2/config/x.yaml": b"A: 1\n",
    "detectron2/_C.cpython-310-x86_64-linux-gnu.so": b"\x7fELF",
    "tools/__init__.py": b"",
    "../outside.py": b"",
    f"{install_detectron2.DIST_INFO}/METADATA": b"Name: sal-detectron2\nVersion: 0.7.2\n",
    f"{install_detectron2.DIST_INFO}/RECORD": b"of the wheel,,\n",
}


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel of the real one's shape, which passes for the expected file."""
    path = tmp_path / "sal_detectron2-0.7.2-cp310-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in WHEEL_FILES.items():
            archive.writestr(name, content)
    monkeypatch.setattr(install_detectron2, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


@pytest.fixture
def site(tmp_path, monkeypatch):
    """An empty site-packages, and an import system that finds detectron2 there and nowhere else."""
    folder = tmp_path / "site"
    folder.mkdir()
    init = folder / "detectron2" / "__init__.py"

    def find_spec(name):
        return SimpleNamespace(origin=str(init)) if init.is_file() else None

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(importlib.metadata, "version", no_such_distribution)
    return folder


def no_such_distribution(name):
    raise importlib.metadata.PackageNotFoundError(name)


def files_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_detectron2_is_unpacked_without_operators_and_strangers(wheel, site):
    assert "installed" in install_detectron2.install(site, wheel)
    info = install_detectron2.DIST_INFO
    assert files_in(site) == {
        "detectron2/__init__.py",
        "detectron2/config/x.yaml",
        *(f"{info}/{name}" for name in ("METADATA", "INSTALLER", "RECORD")),
    }
    record = dict(line.split(",", 1) for line in (site / info / "RECORD").read_text().splitlines())
    assert set(record) == files_in(site)  # so that `pip uninstall` removes all of it
    digest = base64.urlsafe_b64encode(hashlib.sha256(WHEEL_FILES["detectron2/__init__.py"]).digest())
    assert record["detectron2/__init__.py"] == f"sha256={digest.rstrip(b'=').decode()},21"


def test_a_second_call_installs_nothing_and_a_broken_unpacking_is_repaired(wheel, site):
    install_detectron2.install(site, wheel)
    assert "left as it is" in install_detectron2.install(site, wheel.with_name("not there"))
    (site / install_detectron2.DIST_INFO / "RECORD").unlink()
    (site / "detectron2" / "left_over.py").touch()
    install_detectron2.install(site, wheel)
    assert "detectron2/left_over.py" not in files_in(site)
    assert (site / install_detectron2.DIST_INFO / "RECORD").is_file()


def test_an_official_detectron2_is_left_alone(site, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", {"detectron2": "0.6"}.__getitem__)
    assert install_detectron2.install(site) == "official detectron2 0.6 is installed: left as it is"
    assert files_in(site) == set()


def test_a_source_tree_of_detectron2_is_left_alone(site, tmp_path, monkeypatch):
    spec = SimpleNamespace(origin=str(tmp_path / "clone" / "detectron2" / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert f"source tree {tmp_path / 'clone' / 'detectron2'}" in install_detectron2.install(site)
    assert files_in(site) == set()


def test_another_file_is_refused_in_one_line(wheel, monkeypatch, capsys):
    monkeypatch.setattr(install_detectron2, "describe_installed", lambda site: None)
    monkeypatch.setattr(install_detectron2, "unpack", lambda wheel, site: pytest.fail("unpacked"))
    with wheel.open("ab") as file:
        file.write(b"\0")
    assert install_detectron2.main(["--wheel", str(wheel)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "SHA-256" in error and wheel.name in error
    assert install_detectron2.main(["--wheel", "nowhere.whl"]) == 1
    assert "nowhere.whl" in capsys.readouterr().err


def test_the_fingerprint_follows_python_and_every_input(tmp_path):
    for name in setup_env.INPUTS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    prints = [setup_env.fingerprint(tmp_path, "3.11"), setup_env.fingerprint(tmp_path, "3.12")]
    assert prints[0] == setup_env.fingerprint(ROOT, "3.11")
    for name in setup_env.INPUTS:
        with (tmp_path / name).open("a") as file:
            file.write("\n")
        prints.append(setup_env.fingerprint(tmp_path, "3.11"))
    assert len(set(prints)) == len(setup_env.INPUTS) + 2


@pytest.fixture
def steps(tmp_path, monkeypatch):
    """Set-up of tmp_path with everything slow replaced by a list of what was asked for."""
    asked = []
    monkeypatch.setattr(setup_env, "make_venv", lambda venv: venv.mkdir(exist_ok=True) or venv / "bin/python")
    monkeypatch.setattr(setup_env, "python_version_of", lambda python: "3.11")
    monkeypatch.setattr(setup_env, "add_detectron2", lambda python, env: asked.append("detectron2"))
    monkeypatch.setattr(
        setup_env, "pip_install", lambda python, arguments, log, env: asked.append(arguments[-1])
    )
    return asked


def test_a_second_set_up_does_nothing(tmp_path, steps, capsys):
    setup_env.set_up(tmp_path / ".venv")
    assert steps == ["requirements-dev.txt", "requirements-nodeps.txt", "detectron2"]
    capsys.readouterr()
    setup_env.set_up(tmp_path / ".venv")
    assert len(steps) == 3 and capsys.readouterr().out == ""


def test_an_interrupted_set_up_is_taken_up_again(tmp_path, steps, monkeypatch, capsys):
    def interrupt(python, env):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(setup_env, "add_detectron2", interrupt)
        assert setup_env.report(lambda: setup_env.set_up(tmp_path / ".venv")) == 130
    assert "goes on from here" in capsys.readouterr().err
    assert not (tmp_path / ".venv" / setup_env.STAMP).exists()
    setup_env.set_up(tmp_path / ".venv")
    assert steps[-1] == "detectron2" and (tmp_path / ".venv" / setup_env.STAMP).is_file()


def test_packages_cut_short_are_forgotten(tmp_path):
    for name, files in {"whole": ["INSTALLER", "RECORD"], "cut": ["METADATA", "RECORD"]}.items():
        (tmp_path / f"{name}-1.0.dist-info").mkdir()
        for file in files:
            (tmp_path / f"{name}-1.0.dist-info" / file).touch()
    (tmp_path / "~orch").mkdir()  # what pip was about to remove
    assert setup_env.remove_half_installed(tmp_path) == ["cut-1.0.dist-info", "~orch"]
    assert [path.name for path in tmp_path.iterdir()] == ["whole-1.0.dist-info"]


def test_pips_progress_and_failure_in_lines_for_people():
    shown = setup_env.worth_showing
    assert (
        shown("  Downloading torch-2.12.1-cp311-cp311-linux.whl (532.2 MB)") == "downloading torch (532.2 MB)"
    )
    assert shown("  Downloading tqdm-4.70.1-py3-none-any.whl (78 kB)") is None
    assert shown("Installing collected packages: a, b, c\n") == "installing 3 packages (up to two minutes)"
    assert shown("Installing collected packages: a") == "installing a"
    assert shown("Building wheels for collected packages: fvcore, iopath") == "building fvcore, iopath"
    assert shown("Requirement already satisfied: numpy") is None
    log = ROOT / "log"
    lines = ["Collecting nothing==9", "ERROR: No matching distribution found for nothing==9", "notice"]
    assert "No matching distribution found for nothing==9" in setup_env.failure_of_pip(lines, log)
    assert "TMPDIR" in setup_env.failure_of_pip(["ERROR: [Errno 28] No space left on device"], log)
    assert "no output" in setup_env.failure_of_pip([], log)
    assert "killed" in setup_env.failure_of_pip(["Collecting torch", "Killed"], log, -9)


def test_pip_runs_with_its_output_in_the_log(tmp_path):
    log = tmp_path / "log"
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho \"$@\"\necho 'ERROR: no luck' >&2\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(SetupError, match="ERROR: no luck"):
        setup_env.pip_install(python, ["a package"], log, os.environ)
    assert "-m pip install --prefer-binary --progress-bar off a package" in log.read_text()


def test_an_unsuitable_venv_is_not_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(setup_env, "python_version_of", lambda python: "3.9")
    with pytest.raises(SetupError, match="holds Python 3.9"):
        setup_env.make_venv(tmp_path)


def test_a_full_disk_is_said_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1.5e9))
    with pytest.raises(SetupError, match="1.5 GB free"):
        setup_env.make_venv(tmp_path / ".venv")
    assert not (tmp_path / ".venv").exists()


def test_no_interpreter_no_version():
    assert setup_env.python_version_of(ROOT / "no" / "python") is None
    assert setup_env.python_version_of(sys.executable) == "{}.{}".format(*sys.version_info)


def requirement_lines(name):
    lines = (line.split("#")[0].split("--hash")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [line for line in lines if line and not line.startswith("-")]


def test_everything_is_pinned_once():
    pinned = {}
    for name in ("requirements.txt", "requirements-dev.txt", "requirements-nodeps.txt", "constraints.txt"):
        for line in requirement_lines(name):
            match = re.fullmatch(r"([\w.-]+)==([\w.]+)(; python_version (>=|<) \"3\.1\d\")?", line)
            assert match, f"{name}: {line}"
            pinned.setdefault(re.sub(r"[-_.]+", "-", match[1]).lower(), []).append((name, match[2], match[4]))
    for package, pins in pinned.items():
        assert len({name for name, _, _ in pins}) == 1, f"{package} is pinned in several files: {pins}"
        assert sorted(condition or "" for *_, condition in pins) in ([""], [">="], ["<", ">="]), package
    for minimum in complete_env.read_minimums():
        versions = [version for _, version, _ in pinned[minimum.name.lower()]]
        assert not any(complete_env.older(version, minimum.oldest) for version in versions), minimum


def test_versions_compare_as_numbers():
    assert complete_env.version_tuple("2.6.0+cu126") == (2, 6, 0)
    assert complete_env.older("2.9", "2.10") and not complete_env.older("0.1.5.post20221221", "0.1.5")
    assert not complete_env.older("2.4.0a0+git1", "2.4")


def test_an_own_environment_gets_only_what_it_lacks(monkeypatch, capsys):
    versions = {"timm": "0.4.12", "opencv-python-headless": "", "tqdm": None}
    monkeypatch.setattr(complete_env, "installed_version", lambda name: versions.get(name, "99"))
    assert complete_env.missing_requirements() == ["tqdm>=4.64"]
    assert "timm 0.4.12 is older than 1.0; left as it is" in capsys.readouterr().out


def test_a_cv2_of_another_distribution_counts(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", no_such_distribution)
    assert complete_env.installed_version("opencv-python-headless") == ""
    assert complete_env.installed_version("tqdm") is None


def test_an_own_environment_brings_its_torch(monkeypatch):
    monkeypatch.setattr(complete_env, "installed_version", {"torch": "2.3.1", "torchvision": "0.18"}.get)
    with pytest.raises(SetupError, match=r"found torch 2\.3\.1 .* first install torch >= 2\.4"):
        complete_env.require_torch()


def test_installed_packages_are_held_at_their_versions():
    assert f"numpy=={importlib.metadata.version('numpy')}" in complete_env.installed_packages()


def test_the_root_takes_the_place_of_the_tools_folder(tmp_path):
    path = [str(tmp_path / "tools"), "elsewhere"]
    for _ in range(2):  # a spawned process begins with the path of its parent
        _path.put_root_first(path, tmp_path)
        assert path == [str(tmp_path), "elsewhere", str(tmp_path / "tools")]
    path = ["elsewhere"]
    _path.put_root_first(path, tmp_path)
    assert path == [str(tmp_path), "elsewhere"]


def make(folder, *arguments):
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_without_a_suitable_python_says_so_in_one_line(tmp_path):
    folder = tmp_path / "a folder"
    folder.mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    done = make(folder, "test", "PYTHON=/no such/python")
    errors = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert done.returncode and len(errors) == 1
    assert errors[0].startswith("error: Python 3.10") and "/no such/python" in errors[0]
    assert "make test PYTHON=" in errors[0]
    listed = make(folder).stdout
    assert {"demo", "test", "lint", "doctor", "clean"} <= set(
        re.findall(r"^make (\S+)", listed, re.MULTILINE)
    )


def test_ci_calls_what_a_person_calls():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash" and "set -euo pipefail" in lines
    assert lines[-2:] == ["make system-deps", "make test"]


def test_the_readme_names_only_what_exists():
    text = (ROOT / "README.md").read_text()
    links = {link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link}
    named = set(re.findall(r"(?:tools|configs)/[\w./-]+\.(?:py|yaml)", text))
    assert len(links) > 20 and len(named) > 5
    assert [path for path in sorted(links | named) if not (ROOT / path).exists()] == []
