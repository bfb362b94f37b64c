"""Makes .venv as requirements.txt describes it: what `make demo` and `make test` call first.

    python3 tools/setup_env.py

tools/complete_env.py completes an environment of your own instead. A finished .venv carries a stamp, the
hash of everything it was made from; as long as that fits, a further call does nothing. An interrupted call
is taken up where it stopped. Standard library only: this runs before anything else.
"""

import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAMP = ".setup-complete"
INPUTS = (
    "requirements.txt",
    "requirements-dev.txt",
    "requirements-nodeps.txt",
    "constraints.txt",
    "tools/install_detectron2.py",
)
OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 13)
GIGABYTES_NEEDED = 7.0
SMOKE_TEST = "import torch, torchvision, detectron2.modeling, cv2, scipy, panopticapi.evaluation"


class SetupError(RuntimeError):
    """The environment cannot be made; the message is one line."""


def clean_environment() -> dict[str, str]:
    """os.environ without what would let pip see or write packages outside .venv."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    return kept | {"PYTHONNOUSERSITE": "1", "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def fingerprint(root: Path, python_version: str) -> str:
    """Hash of all that decides what .venv holds."""
    digest = hashlib.sha256(python_version.encode())
    for name in INPUTS:
        digest.update(name.encode() + b"\0" + (root / name).read_bytes() + b"\0")
    return digest.hexdigest()


def python_version_of(python: Path) -> str | None:
    """'3.11' for an interpreter that runs, None for one that is missing or broken."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, env=clean_environment())
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def remove_half_installed(site: Path) -> list[str]:
    """Delete the metadata of packages whose installation was cut short, so that pip installs them again.

    pip writes INSTALLER and then RECORD after all of a package's files.
    """
    removed = []
    for folder in [*site.glob("*.dist-info"), *site.glob("~*")]:
        if folder.name.startswith("~") or not all((folder / n).is_file() for n in ("INSTALLER", "RECORD")):
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder.name)
    return sorted(removed)


def worth_showing(line: str) -> str | None:
    """What of a line of pip's output tells a person how far it is; None for the rest."""
    download = re.search(r"(Downloading|Using cached) (\S+\.(?:whl|tar\.gz)) \(([\d.]+) ([MG])B\)", line)
    if download and (download[4] == "G" or float(download[3]) >= 20):
        return f"{download[1].lower()} {download[2].split('-')[0]} ({download[3]} {download[4]}B)"
    if line.startswith("Installing collected packages:"):
        names = line.split(":")[1].split(",")
        what = f"{len(names)} packages (up to two minutes)" if len(names) > 1 else names[0].strip()
        return f"installing {what}"
    if line.startswith("Building wheels for collected packages:"):
        return f"building {line.split(':')[1].strip()}"
    return line.strip() if line.startswith("Would install") else None


def pip_install(python: Path, arguments: Iterable[str], log: Path, env: Mapping[str, str]) -> None:
    """Run `pip install`, all its output in `log`, its progress on stdout; SetupError when it fails."""
    command = [str(python), "-m", "pip", "install", "--prefer-binary", "--progress-bar", "off", *arguments]
    lines: list[str] = []
    pipe = functools.partial(subprocess.Popen, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with log.open("a", encoding="utf-8") as file, pipe(command, cwd=ROOT, env=dict(env)) as process:
        for line in process.stdout or ():
            file.write(line)
            lines.append(line.rstrip())
            if (shown := worth_showing(line)) is not None:
                print(f"    {shown}", flush=True)
    if process.returncode:
        raise SetupError(failure_of_pip(lines, log, process.returncode))


def failure_of_pip(lines: list[str], log: Path, code: int = 1) -> str:
    """Why pip failed, in one line, from its output and exit code (negative: the signal that killed it)."""
    if code < 0:
        return f"pip was killed by signal {-code} (whole output: {log}); calling again goes on from here"
    if any("No space left on device" in line for line in lines):
        return f"the disk is full (pip unpacks in {tempfile.gettempdir()}; set TMPDIR to a larger folder)"
    errors = [line for line in lines if line.startswith("ERROR")] or lines or ["no output"]
    return f"pip failed: {errors[-1]} (whole output: {log}); calling again goes on from here"


def make_venv(venv: Path) -> Path:
    """Create `venv` unless a working one is there; returns its interpreter."""
    python = venv / "bin" / "python"
    version = python_version_of(python)
    if version is not None and not OLDEST_PYTHON <= tuple(map(int, version.split("."))) <= NEWEST_PYTHON:
        raise SetupError(f"{venv} holds Python {version}, which does not fit: remove it and call again")
    has_pip = version is not None and runs([python, "-m", "pip", "--version"])
    if has_pip or (version is not None and runs([python, "-m", "ensurepip", "--default-pip"])):
        return python
    free = shutil.disk_usage(venv.parent).free / 1e9
    if free < GIGABYTES_NEEDED:
        raise SetupError(f"{free:.1f} GB free in {venv.parent}, {venv.name} needs {GIGABYTES_NEEDED:.0f} GB")
    print(f"  creating {venv.name} with Python {sys.version.split()[0]}", flush=True)
    done = subprocess.run([sys.executable, "-m", "venv", "--clear", venv], capture_output=True, text=True)
    if done.returncode:
        words = (done.stdout + done.stderr).strip().splitlines() or ["no output"]
        raise SetupError(f"python -m venv failed: {words[0]} (Debian, Ubuntu: apt-get install python3-venv)")
    return python


def runs(command: list[str | Path]) -> bool:
    """True when `command` ends with exit code 0."""
    return subprocess.run(command, capture_output=True, env=clean_environment()).returncode == 0


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Let a second call in the same folder wait for the first (where the file system has locks)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def set_up(venv: Path) -> None:
    """Bring `venv` to what the requirements say, doing nothing when its stamp fits."""
    version = python_version_of(venv / "bin" / "python")
    stamp = venv / STAMP
    if version is not None and stamp.is_file() and stamp.read_text() == fingerprint(ROOT, version):
        return
    started = time.monotonic()
    print("Setting up .venv (once; about 6 GB, most of it PyTorch's CUDA libraries)", flush=True)
    python = make_venv(venv)
    stamp.unlink(missing_ok=True)
    for site in venv.glob("lib/python3*/site-packages"):
        for name in remove_half_installed(site):
            print(f"  {name} was cut short: installing it again", flush=True)
    log = venv / "setup.log"
    print("  packages (requirements.txt, requirements-dev.txt)", flush=True)
    pip_install(python, ["-r", "requirements.txt", "-r", "requirements-dev.txt"], log, clean_environment())
    print("  panopticapi, detectron2", flush=True)
    pip_install(python, ["--no-deps", "-r", "requirements-nodeps.txt"], log, clean_environment())
    add_detectron2(python, clean_environment())
    new = stamp.with_suffix(".new")
    new.write_text(fingerprint(ROOT, python_version_of(python) or ""))
    new.replace(stamp)
    print(f"  done in {time.monotonic() - started:.0f} s", flush=True)


def add_detectron2(python: Path, env: Mapping[str, str]) -> None:
    """Install detectron2 unless it is there, and import what everything stands on."""
    command = [str(python), str(ROOT / "tools" / "install_detectron2.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(env))
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["detectron2 was not installed"])[-1]
        raise SetupError(last.removeprefix("error: "))
    print(f"    {done.stdout.strip()}", flush=True)
    done = subprocess.run([python, "-c", SMOKE_TEST], capture_output=True, text=True, env=dict(env))
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise SetupError(f"installed, but not importable: {last}")


def report(work: Callable[[], None]) -> int:
    """Run `work`: exit code 1 and one line on stderr when it cannot be done, 130 after Ctrl-C."""
    try:
        work()
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: calling again goes on from here", file=sys.stderr)
        return 130
    return 0


def main() -> None:
    """Set .venv up, one call at a time."""
    with one_at_a_time(ROOT):
        set_up(ROOT / ".venv")


if __name__ == "__main__":
    sys.exit(report(main))
