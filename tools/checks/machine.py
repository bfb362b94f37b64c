"""Python, system, cores, memory, where results go, and Slurm."""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from tools.checks.finding import Finding
from tools.setup_env import OLDEST_PYTHON

CGROUP = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """CPU cores that this process may use, by affinity and by a container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no such file, or "max" for no quota
        quota, period = (CGROUP / "cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def usable_memory() -> float:
    """GB of memory, by machine and by a container's limit."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):
        memory = min(memory, int((CGROUP / "memory.max").read_text()))
    return memory / 1e9


def check_machine() -> list[Finding]:
    """What the machine offers, and whether that is enough."""
    findings = [
        check_python(sys.version_info[:2]),
        Finding("machine", "system", "ok", platform.platform()),
        Finding("machine", "CPU cores", "ok", str(usable_cores())),
        Finding("machine", "memory", "ok", f"{usable_memory():.0f} GB"),
    ]
    with suppress(OSError):
        findings.append(check_shared_memory(shutil.disk_usage("/dev/shm").total / 1e9))
    return [*findings, check_writable(Path("output")), check_slurm()]


def check_python(version: tuple[int, int]) -> Finding:
    """Whether this Python (major, minor) is new enough."""
    if version < OLDEST_PYTHON:
        mend = f"use Python {'.'.join(map(str, OLDEST_PYTHON))} or later"
        return Finding("machine", "Python", "MISSING", platform.python_version(), mend)
    return Finding("machine", "Python", "ok", f"{platform.python_version()} ({sys.executable})")


def check_shared_memory(gigabytes: float) -> Finding:
    """Data-loader workers hand batches over in shared memory, of which containers have 64 MB by default."""
    if gigabytes < 1:
        mend = "docker run --shm-size=8g, or DATALOADER.NUM_WORKERS 0: loader workers die without room"
        return Finding("machine", "shared memory", "mend", f"{gigabytes:.2f} GB", mend)
    return Finding("machine", "shared memory", "ok", f"{gigabytes:.0f} GB")


def check_writable(folder: Path) -> Finding:
    """Whether files can be made in `folder`, or where it would be created."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    try:
        with tempfile.TemporaryFile(dir=existing):
            free = shutil.disk_usage(existing).free / 1e9
    except OSError as error:
        mend = "set OUTPUT_DIR to a folder of yours"
        return Finding("machine", "results", "mend", f"{existing.absolute()}: {error.strerror}", mend)
    return Finding("machine", "results", "ok", f"{folder.absolute()}, {free:.0f} GB free")


def check_slurm() -> Finding:
    """Whether jobs can be submitted from here."""
    sbatch = shutil.which("sbatch")
    if sbatch is None:
        return Finding("machine", "Slurm", "none", "no sbatch here")
    done = subprocess.run([sbatch, "--version"], capture_output=True, text=True, timeout=30)
    return Finding("machine", "Slurm", "ok", f"{done.stdout.strip()} ({sbatch})")
