"""Puts detectron2 into the Python that runs this, and leaves one that is already there as it is.

    python tools/install_detectron2.py [--wheel FILE]

PyPI has no package under detectron2's own name. The wheel `sal-detectron2` 0.7.2 is detectron2's main branch
of 2024 with two lines changed, as a comparison with the official history shows. Its tag asks for Python 3.10;
but apart from compiled operators, which this project does not use, it is plain Python, and pip would refuse
what runs. So this tool downloads exactly that file, checks its SHA-256 and unpacks it into site-packages,
without the compiled operators and without the top-level package `tools` that comes along.
`pip uninstall sal-detectron2` removes it again.

Standard library only, so that it runs before anything else is installed.
"""

import argparse
import base64
import csv
import hashlib
import importlib.metadata
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

NAME, VERSION = "sal-detectron2", "0.7.2"
SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
DIST_INFO = f"sal_detectron2-{VERSION}.dist-info"
PACKAGE = "detectron2"


class InstallError(RuntimeError):
    """The wheel cannot be fetched or is not the file it should be; the message is one line."""


def describe_installed(site: Path) -> str | None:
    """What `import detectron2` would find, in words; None when that is nothing, or a broken unpacking."""
    try:
        return f"official detectron2 {importlib.metadata.version(PACKAGE)}"
    except importlib.metadata.PackageNotFoundError:
        pass
    spec = importlib.util.find_spec(PACKAGE)
    origin = Path(spec.origin).parent if spec is not None and spec.origin else None
    if origin is not None and origin != site / PACKAGE:
        return f"detectron2 from the source tree {origin}"
    if origin is not None and (site / DIST_INFO / "RECORD").is_file():
        return f"detectron2 from {NAME} {VERSION}"
    return None


def wanted(name: str) -> bool:
    """True for what is unpacked: detectron2 without its compiled operators, and its metadata."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or name.endswith("/"):
        return False
    return path.parts[0] in (PACKAGE, DIST_INFO) and path.suffix != ".so" and path.name != "RECORD"


def record_row(name: str, content: bytes) -> tuple[str, str, int]:
    """One line of a wheel's RECORD: path, digest (urlsafe base64 without padding) and size in bytes."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return name, f"sha256={digest}", len(content)


def unpack(wheel: Path, site: Path) -> int:
    """Unpack the wanted entries into `site` and return how many files that were.

    The metadata comes last, so that an interrupted run counts as not installed.
    """
    rows: list[tuple[str, str, int | str]] = []
    contents: dict[str, bytes] = {}
    with zipfile.ZipFile(wheel) as archive:
        for name in filter(wanted, archive.namelist()):
            contents[name] = archive.read(name)
            rows.append(record_row(name, contents[name]))
    contents[f"{DIST_INFO}/INSTALLER"] = b"pisr-maskformer\n"
    rows.append(record_row(f"{DIST_INFO}/INSTALLER", contents[f"{DIST_INFO}/INSTALLER"]))
    rows.append((f"{DIST_INFO}/RECORD", "", ""))
    record = io.StringIO()
    csv.writer(record, lineterminator="\n").writerows(rows)
    contents[f"{DIST_INFO}/RECORD"] = record.getvalue().encode()

    with tempfile.TemporaryDirectory(prefix=".detectron2-", dir=site) as folder:
        for name, content in contents.items():
            target = Path(folder, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        shutil.rmtree(site / DIST_INFO, ignore_errors=True)
        for part in (PACKAGE, DIST_INFO):
            shutil.rmtree(site / part, ignore_errors=True)
            os.replace(Path(folder, part), site / part)
    return len(contents)


def check_wheel(wheel: Path) -> None:
    """Raise InstallError unless `wheel` is byte for byte the file this project was tested with."""
    try:
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    except OSError as error:
        raise InstallError(f"cannot read {wheel}: {error.strerror}") from error
    if found != SHA256:
        raise InstallError(
            f"{wheel.name} has SHA-256 {found}, expected {SHA256}, and was not installed: "
            "fetch it again, or install the official detectron2 (README, 'On a cluster')"
        )


def download(folder: Path) -> Path:
    """Fetch the wheel with pip, from whatever index pip is configured for, into `folder`."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", "3.10", "--abi", "none"]
    command += ["--platform", "any", "--dest", str(folder), f"{NAME}=={VERSION}"]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = done.stderr.splitlines() or [f"exit code {done.returncode}"]
        reason = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1])
        raise InstallError(f"pip could not download {NAME}=={VERSION}: {reason}")
    return wheels[0]


def install(site: Path, wheel: Path | None = None) -> str:
    """Install into `site` unless a detectron2 is there already; one line that says what is there now."""
    found = describe_installed(site)
    if found is not None:
        return f"{found} is installed: left as it is"
    with tempfile.TemporaryDirectory() as folder:
        source = wheel or download(Path(folder))
        check_wheel(source)
        count = unpack(source, site)
    importlib.invalidate_caches()
    return f"detectron2 from {NAME} {VERSION} installed ({count} files, SHA-256 checked)"


def main(arguments: list[str] | None = None) -> int:
    """Command line; exit code 1 and one line on stderr when the wheel cannot be had or written."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--wheel", type=Path, help="a downloaded wheel, for machines without an index")
    options = parser.parse_args(arguments)
    try:
        print(install(Path(sysconfig.get_path("purelib")), options.wheel))
    except InstallError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: cannot write to {sysconfig.get_path('purelib')}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
