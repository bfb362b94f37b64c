"""Adds to the environment this runs in what requirements-min.txt names and it lacks, and replaces nothing.

    python tools/complete_env.py [--dry-run]

For a cluster or any environment with a torch of its own: first install torch (>= 2.4) and torchvision in the
build that fits the driver, and the official detectron2 if it can be built; where there is none, the copy of
tools/install_detectron2.py is added. All that is installed keeps its version while pip adds what is missing.
"""

import argparse
import functools
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import _path  # noqa: F401
from tools.setup_env import ROOT, SetupError, add_detectron2, pip_install, report

OLDEST_TORCH = "2.4"
# cv2 comes in several packages; this one, installed beside another, would replace the other's files.
MODULE_OF = {"opencv-python-headless": "cv2"}


class Minimum(NamedTuple):
    """One line of requirements-min.txt, such as omegaconf>=2.1,<2.4."""

    name: str
    oldest: str
    line: str


def read_minimums(path: Path = ROOT / "requirements-min.txt") -> list[Minimum]:
    """The requirements of the file at `path`, in its order."""
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    found = (re.fullmatch(r"([\w.-]+)>=([\w.]+).*", line) for line in lines if line)
    return [Minimum(match[1], match[2], match[0]) for match in found if match]


def version_tuple(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: '2.6.0+cu126' -> (2, 6, 0)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def older(version: str, oldest: str) -> bool:
    """True when `version` comes before `oldest`."""
    return version_tuple(version) < version_tuple(oldest)


def installed_version(name: str) -> str | None:
    """The version of a distribution, '' for a module that came some other way, None when there is neither."""
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    module = MODULE_OF.get(name)
    return "" if module and importlib.util.find_spec(module) else None


def require_torch() -> None:
    """SetupError unless a torch that is new enough, and torchvision, are there."""
    torch = installed_version("torch")
    if torch is None or older(torch, OLDEST_TORCH) or installed_version("torchvision") is None:
        raise SetupError(
            f"found {'torch ' + torch if torch else 'no torch'} in {sys.executable}: first install torch >= "
            f"{OLDEST_TORCH} and torchvision, in the build that fits your driver (PyTorch's install page)"
        )


def missing_requirements() -> list[str]:
    """The lines of requirements-min.txt that nothing installed answers; prints what is installed but old."""
    missing = []
    for minimum in read_minimums():
        found = installed_version(minimum.name)
        if found is None:
            missing.append(minimum.line)
        elif found and older(found, minimum.oldest):
            print(f"  {minimum.name} {found} is older than {minimum.oldest}; left as it is, it may not do")
    return missing


def installed_packages() -> list[str]:
    """Everything installed, as pip constraints."""
    command = [sys.executable, "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SetupError(f"{sys.executable} has no working pip")
    return [line for line in done.stdout.splitlines() if re.fullmatch(r"[\w.-]+==\d[\w.!+]*", line)]


def complete(dry_run: bool) -> None:
    """Install what is missing; with `dry_run`, only show what that would be."""
    require_torch()
    python, missing = Path(sys.executable), missing_requirements()
    print(f"  missing: {', '.join(missing) or 'nothing'}", flush=True)
    flags = ["--dry-run"] if dry_run else []
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder, "installed.txt")
        constraints.write_text("\n".join(installed_packages()))
        log = Path(tempfile.gettempdir(), f"pisr-maskformer-pip-{os.getpid()}.log")
        if missing:
            pip_install(python, [*flags, "-c", str(constraints), *missing], log, os.environ)
        if importlib.util.find_spec("panopticapi") is None:
            pip_install(python, [*flags, "--no-deps", "-r", "requirements-nodeps.txt"], log, os.environ)
    if not dry_run:
        add_detectron2(python, os.environ)


def main() -> int:
    """Command line; exit code 1 and one line on stderr when it cannot be done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="only show what would be installed")
    return report(functools.partial(complete, parser.parse_args().dry_run))


if __name__ == "__main__":
    sys.exit(main())
