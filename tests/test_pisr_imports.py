"""Imports run one way, by the syntax tree: PISR needs torch alone, MaskFormer knows nothing of PISR."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = sorted((ROOT / "pisr_maskformer").glob("*.py"))
# What each core file may import of the others: encodings, reweighting, attention <- module.
LAYERS = {
    "config": set(),
    "reweighting": set(),
    "moments": set(),
    "pixel_sums": {"moments"},
    "criterion": {"config"},
    "encodings": {"config", "moments", "pixel_sums"},
    "attention": {"config", "encodings", "pixel_sums"},
    "embeddings": {"attention"},
    "feedback": {"attention", "moments"},
    "internals": {"attention", "encodings", "pixel_sums"},
    "statistics": {"attention", "moments"},
    "variants": {"config", "criterion", "encodings", "reweighting", "attention", "feedback"},
    "module": {
        "config",
        "pixel_sums",
        "encodings",
        "reweighting",
        "attention",
        "feedback",
        "embeddings",
        "internals",
        "statistics",
        "variants",
    },
    "__init__": {"config", "criterion", "module"},
}


def imported(path):
    """Every module that a file imports anywhere in it, by full name; relative imports start with a point."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.stem)
def test_core_imports_torch_and_its_own_layers(path):
    names = set(imported(path))
    own = {name.partition(".")[2] for name in names if name.split(".")[0] == "pisr_maskformer"}
    others = {name.split(".")[0] for name in names} - {"pisr_maskformer", "torch"}
    assert others <= sys.stdlib_module_names, "the core needs torch alone"
    assert own <= LAYERS[path.stem]


def test_only_hosts_import_mask_former():
    files = set((ROOT / "pisr_maskformer").rglob("*.py"))
    importers = {
        path for path in files if any(name.split(".")[0] == "mask_former" for name in imported(path))
    }
    assert importers == {ROOT / "pisr_maskformer" / "hosts" / "maskformer.py"}


def test_mask_former_does_not_know_pisr():
    files = list((ROOT / "mask_former").rglob("*.py"))
    assert files
    assert not [path for path in files if any("pisr_maskformer" in name for name in imported(path))]
