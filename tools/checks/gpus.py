"""Whether this machine's GPUs can run the installed torch, and what to install where they cannot.

A CUDA build of torch holds machine code for some architectures (sm_80), and may hold intermediate code
(compute_90, PTX) that the driver translates. Machine code for X.Y runs on X.Z with Z >= Y, intermediate code
on everything newer. A build for a CUDA of a later major version than the driver's does not start at all.
"""

import re
import shutil
import subprocess
import warnings
from dataclasses import dataclass
from typing import Any

from tools.checks.finding import Finding
from tools.checks.packages import COMPLETE, TORCH_MEND, import_or_reason

Capability = tuple[int, int]


@dataclass(frozen=True)
class Gpu:
    """One GPU as the driver reports it; capability is None where an old driver does not tell."""

    name: str
    capability: Capability | None
    memory: str = ""


@dataclass(frozen=True)
class Driver:
    """What nvidia-smi says; `cuda` is the newest CUDA the driver runs, None where it is not told."""

    version: str
    cuda: tuple[int, int] | None
    gpus: tuple[Gpu, ...]


def check_gpus() -> list[Finding]:
    """Each GPU of this machine, and whether the installed torch can use it."""
    driver = query_driver()
    if driver is None or not driver.gpus:
        return [Finding("GPU", "GPU", "none", "no NVIDIA driver answers; everything runs on the CPU, slowly")]
    return findings_for(driver, import_or_reason("torch"))


def findings_for(driver: Driver, torch: Any) -> list[Finding]:
    """What `torch`, the module or why it cannot be imported, makes of the GPUs of `driver`."""
    cuda = f", runs CUDA up to {_dotted(driver.cuda)}" if driver.cuda else ""
    findings = [Finding("GPU", "driver", "ok", driver.version + cuda)]
    if isinstance(torch, str):
        return [*findings, *(Finding("GPU", gpu.name, "mend", gpu.memory, TORCH_MEND) for gpu in driver.gpus)]
    built = architectures_of(torch)
    if trouble := trouble_of_build(torch, driver):
        findings.append(Finding("GPU", "torch", "mend", *trouble))
    else:
        value = f"built for CUDA {torch.version.cuda}: {' '.join(built)}"
        findings.append(Finding("GPU", "torch", "ok", value))
    return findings + [check_gpu(gpu, built) for gpu in driver.gpus]


def check_gpu(gpu: Gpu, built: list[str]) -> Finding:
    """Whether a torch built for the architectures `built` has code for this GPU."""
    if gpu.capability is None:
        return Finding("GPU", gpu.name, "ok", f"{gpu.memory}, capability not told by this driver")
    number = "sm_" + "".join(map(str, gpu.capability))
    runs = covers(gpu.capability, built)
    if runs is None:
        value = f"{number}, {gpu.memory}: this torch has no code for it"
        return Finding("GPU", gpu.name, "mend", value, mend_for(gpu.capability, built))
    return Finding("GPU", gpu.name, "ok", f"{number}, {gpu.memory}, runs this torch's {runs}")


def covers(capability: Capability, architectures: list[str]) -> str | None:
    """The entry of `architectures` (torch.cuda.get_arch_list) that runs on `capability`, or None.

    Machine code comes before intermediate code. Entries ending in "a" are for exactly that architecture, in
    "f" for its major version.
    """
    machine, intermediate = None, None
    for entry in architectures:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", entry)
        if not match:
            continue
        kind, built, suffix = match[1], (int(match[2]), int(match[3])), match[4]
        same_major = built[0] == capability[0]
        runs = built == capability if suffix == "a" else built <= capability
        if kind == "sm" and runs and same_major:
            machine = entry
        elif kind == "compute" and runs and (same_major or not suffix):
            intermediate = entry
    return machine or intermediate


def mend_for(capability: Capability, architectures: list[str]) -> str:
    """Which build of torch to install for a GPU that the present one has no code for."""
    majors = [int(match[1]) for entry in architectures if (match := re.match(r"\w+_(\d+)\d", entry))]
    if majors and capability[0] <= min(majors):
        return f"{TORCH_MEND}, built for an older CUDA (cu126 or cu118 hold sm_50 to sm_90); then {COMPLETE}"
    return f"{TORCH_MEND}, built for the newest CUDA the driver runs; then {COMPLETE}"


def architectures_of(torch: Any) -> list[str]:
    """What this torch was built for, also where CUDA cannot start (get_arch_list is empty then)."""
    flags = getattr(torch._C, "_cuda_getArchFlags", lambda: None)()
    return list(torch.cuda.get_arch_list()) or (flags or "").split()


def trouble_of_build(torch: Any, driver: Driver) -> tuple[str, str] | None:
    """What keeps this torch from using any GPU, and the mend; None when nothing does."""
    built = torch.version.cuda
    if built is None:
        return f"{torch.__version__} is built without CUDA", f"{TORCH_MEND}, in a CUDA build"
    if driver.cuda and driver.cuda[0] < int(built.split(".")[0]):
        value = f"built for CUDA {built}, but driver {driver.version} runs CUDA up to {_dotted(driver.cuda)}"
        return value, f"{TORCH_MEND}, built for CUDA {driver.cuda[0]}; then {COMPLETE}; or update the driver"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return None
    said = str(caught[0].message).splitlines()[0] if caught else "torch.cuda.is_available() is False"
    return said, "compare CUDA_VISIBLE_DEVICES with what nvidia-smi shows"


def query_driver() -> Driver | None:
    """Ask nvidia-smi; None without it, or without an answer."""
    if shutil.which("nvidia-smi") is None:
        return None
    fields = "--query-gpu=name,compute_cap,memory.total,driver_version"
    rows = _output(["nvidia-smi", fields, "--format=csv,noheader"])
    if rows is None:  # old drivers do not know compute_cap; the index in its place is no capability
        rows = _output(["nvidia-smi", fields.replace("compute_cap", "index"), "--format=csv,noheader"])
    return None if rows is None else parse_driver(rows, _output(["nvidia-smi"]) or "")


def parse_driver(rows: str, table: str) -> Driver:
    """A Driver from nvidia-smi's CSV (name, capability, memory, driver version) and its plain table."""
    gpus, version = [], "unknown"
    for row in rows.strip().splitlines():
        name, capability, memory, version = (field.strip() for field in row.rsplit(",", 3))
        gpus.append(Gpu(name, _pair(capability), memory))
    cuda = re.search(r"CUDA Version:\s*(\d+\.\d+)", table)
    return Driver(version, _pair(cuda[1]) if cuda else None, tuple(gpus))


def _pair(version: str) -> tuple[int, int] | None:
    match = re.fullmatch(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else None


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
