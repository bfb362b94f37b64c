"""Which packages are there, whether they can be imported, and whether they are new enough."""

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from tools.checks.finding import Finding
from tools.complete_env import OLDEST_TORCH, older, read_minimums
from tools.setup_env import ROOT

COMPLETE = "python tools/complete_env.py"
TORCH_MEND = f"install torch >= {OLDEST_TORCH} and torchvision from PyTorch's install page"
# the module, the distributions that bring it, and whether nothing can be trained without it
PACKAGES = (
    ("torch", ("torch",), True),
    ("torchvision", ("torchvision",), True),
    ("numpy", ("numpy",), True),
    ("scipy.optimize", ("scipy",), True),
    ("fvcore.nn", ("fvcore",), True),
    ("cv2", ("opencv-python-headless", "opencv-python"), True),
    ("PIL.Image", ("pillow",), True),
    ("pycocotools.mask", ("pycocotools",), True),
    ("timm", ("timm",), False),
    ("submitit", ("submitit",), False),
    ("tensorboard", ("tensorboard",), False),
    ("panopticapi.evaluation", ("panopticapi-lite", "panopticapi"), False),
)


def check_packages(path: list[str]) -> list[Finding]:
    """Every package this project imports, and what stands in the way on the import path `path`."""
    packages = [check_package(*package) for package in PACKAGES]
    return [*packages, check_detectron2(), *check_stray_tools(path)]


def import_or_reason(module: str) -> ModuleType | str:
    """The imported module, or in one line why it cannot be imported."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # a broken package raises anything: ImportError, OSError, AttributeError
        return f"{type(error).__name__}: {' '.join(str(error).split())}"


def version_of(distributions: Iterable[str]) -> str | None:
    """The version of the first of these distributions that is installed."""
    for name in distributions:
        with suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return None


def check_package(module: str, distributions: tuple[str, ...], necessary: bool) -> Finding:
    """Whether a package is there, can be imported and is new enough."""
    name = module.split(".")[0]
    mend = TORCH_MEND if name in ("torch", "torchvision") else COMPLETE
    version = version_of(distributions)
    imported = import_or_reason(module)
    if isinstance(imported, str):
        absent = version is None and importlib.util.find_spec(name) is None
        value = "not installed" if absent else f"{version or 'installed'}, but {imported}"
        return Finding("packages", name, "MISSING" if necessary else "none", value, mend)
    minimums = {minimum.name: minimum.oldest for minimum in read_minimums()} | {"torch": OLDEST_TORCH}
    oldest = minimums.get(distributions[0], "0")
    if version is not None and older(version, oldest):
        value = f"{version}, older than {oldest}"
        return Finding("packages", name, "MISSING" if name == "torch" else "mend", value, mend)
    return Finding("packages", name, "ok", version or str(getattr(imported, "__version__", "there")))


def check_detectron2() -> Finding:
    """Which detectron2 this is, and whether its models can be imported."""
    imported = import_or_reason("detectron2.modeling")
    spec = importlib.util.find_spec("detectron2")
    if spec is None or isinstance(imported, str):
        value = "not installed" if spec is None else f"installed, but {imported}"
        mend = "install the official one, or python tools/install_detectron2.py"
        return Finding("packages", "detectron2", "MISSING", value, mend)
    which = f"source tree {Path(spec.origin or '').parent}"
    if copy := version_of(["sal-detectron2"]):
        which = f"main branch of 2024, from sal-detectron2 {copy}"
    if official := version_of(["detectron2"]):
        which = f"{official}, official"
    operators = "with" if importlib.util.find_spec("detectron2._C") else "without"
    return Finding("packages", "detectron2", "ok", f"{which}; {operators} compiled operators (not needed)")


def check_stray_tools(path: list[str]) -> list[Finding]:
    """A top-level package `tools` that some distributions leave beside the others hides this project's."""
    candidates = {Path(entry, "tools").resolve() for entry in path}
    stray = [folder for folder in candidates - {ROOT / "tools"} if (folder / "__init__.py").is_file()]
    mend = "remove that folder: nothing this project uses needs it"
    return [Finding("packages", "tools", "mend", f"stray package {folder}", mend) for folder in sorted(stray)]
