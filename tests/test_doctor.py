"""The doctor: what runs on which GPU, what is missing, and the mend it names."""

import importlib
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from mask_former.config import load_config
from mask_former.data.ade20k import FOLDER, SPLIT_FOLDERS, panoptic_paths
from mask_former.data.catalog import datasets_root
from tools import doctor
from tools.checks import data_sets, gpus, machine, packages
from tools.checks.finding import Finding
from tools.setup_env import ROOT

CU130 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]  # torch 2.12.1 from PyPI
V100 = gpus.Gpu("Tesla V100-SXM2-32GB", (7, 0), "32768 MiB")
H200 = gpus.Gpu("NVIDIA H200", (9, 0), "143771 MiB")


def fake_torch(cuda: str | None, built: list[str], available: bool = True) -> SimpleNamespace:
    """As much of torch as the doctor looks at; get_arch_list is empty where CUDA cannot start, as torch's."""
    return SimpleNamespace(
        __version__=f"2.12.1+{cuda}",
        version=SimpleNamespace(cuda=cuda),
        cuda=SimpleNamespace(
            is_available=lambda: available, get_arch_list=lambda: list(built) if available else []
        ),
        _C=SimpleNamespace(_cuda_getArchFlags=lambda: " ".join(built)),
    )


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((7, 0), CU130, None),  # V100: older than everything in the build
        ((7, 0), ["sm_50", "sm_60", "sm_70"], "sm_70"),
        ((8, 9), CU130, "sm_86"),  # RTX 4090: code of a lower minor version
        ((8, 0), ["sm_86"], None),  # and never that of a higher one
        ((12, 1), CU130, "sm_120"),
        ((9, 0), ["sm_80"], None),  # machine code of another major version
        ((9, 0), ["sm_80", "compute_80"], "compute_80"),  # translated by the driver
        ((7, 0), ["sm_80", "compute_80"], None),  # PTX is never translated downwards
        ((9, 0), ["compute_80", "sm_90"], "sm_90"),
        ((9, 0), ["sm_90a"], "sm_90a"),
        ((10, 3), ["sm_100a"], None),  # "a": exactly that architecture
        ((10, 3), ["sm_100f"], "sm_100f"),  # "f": its family
        ((12, 0), ["compute_100f"], None),
        ((9, 0), [], None),
    ],
)
def test_which_code_runs_on_which_gpu(capability, built, runs):
    assert gpus.covers(capability, built) == runs


def test_a_v100_under_a_new_build_is_told_to_take_an_older_one():
    driver = gpus.Driver("580.65", (13, 0), (V100, H200))
    _, torch, v100, h200 = gpus.findings_for(driver, fake_torch("13.0", CU130))
    assert torch.status == "ok"
    assert (v100.status, h200.status) == ("mend", "ok")
    assert v100.value.startswith("sm_70") and "older CUDA (cu126 or cu118" in v100.mend
    assert "sm_90" in h200.value and not h200.mend


def test_a_gpu_newer_than_the_build_is_told_to_take_a_newer_one():
    finding = gpus.check_gpu(gpus.Gpu("B200", (10, 0)), ["sm_70", "sm_80"])
    assert finding.status == "mend" and "newest CUDA" in finding.mend


def test_a_driver_older_than_the_build_is_the_trouble_though_the_code_would_run():
    driver = gpus.Driver("550.54", (12, 4), (H200,))
    _, torch, h200 = gpus.findings_for(driver, fake_torch("13.0", CU130, available=False))
    assert torch.status == "mend" and "CUDA 13.0" in torch.value and "up to 12.4" in torch.value
    assert "built for CUDA 12" in torch.mend
    assert h200.status == "ok"  # its architecture was found although get_arch_list is empty


def test_an_older_minor_version_of_cuda_is_no_trouble():
    assert gpus.trouble_of_build(fake_torch("12.8", CU130), gpus.Driver("535.1", (12, 2), (H200,))) is None


def test_builds_without_cuda_and_gpus_that_do_not_start_are_told_apart():
    driver = gpus.Driver("580.65", (13, 0), (H200,))
    value, mend = gpus.trouble_of_build(fake_torch(None, []), driver)
    assert "without CUDA" in value and "CUDA build" in mend
    value, mend = gpus.trouble_of_build(fake_torch("13.0", CU130, available=False), driver)
    assert "is_available() is False" in value and "CUDA_VISIBLE_DEVICES" in mend


def test_reading_nvidia_smi():
    rows = "Tesla V100-SXM2-32GB, 7.0, 32768 MiB, 535.104.05\nOdd, name, [N/A], 1 MiB, 535.104.05\n"
    table = "| NVIDIA-SMI 535.104.05   Driver Version: 535.104.05   CUDA Version: 12.2     |"
    driver = gpus.parse_driver(rows, table)
    assert driver.version == "535.104.05" and driver.cuda == (12, 2)
    assert driver.gpus == (V100, gpus.Gpu("Odd, name", None, "1 MiB"))
    assert gpus.check_gpu(driver.gpus[1], CU130).status == "ok"


def test_no_gpu_is_not_a_fault(monkeypatch):
    monkeypatch.setattr(gpus, "query_driver", lambda: None)
    assert [finding.status for finding in gpus.check_gpus()] == ["none"]


def test_torch_that_cannot_be_imported_still_shows_the_gpus():
    findings = gpus.findings_for(gpus.Driver("580.65", (13, 0), (H200,)), "ImportError: libcudart.so")
    assert findings[1].name == "NVIDIA H200" and "torch >= 2.4" in findings[1].mend


def test_missing_packages_are_named_with_their_mend(monkeypatch):
    real = importlib.import_module

    def without(name):
        if name.split(".")[0] in ("torch", "timm", "detectron2"):
            raise OSError(f"{name}: libfoo.so:\n  cannot open")
        return real(name)

    monkeypatch.setattr(importlib, "import_module", without)
    found = {finding.name: finding for finding in packages.check_packages([])}
    assert found["torch"].status == "MISSING" and "install page" in found["torch"].mend
    assert "OSError: torch: libfoo.so: cannot open" in found["torch"].value  # one line
    assert found["timm"].status == "none" and found["timm"].mend == packages.COMPLETE
    assert found["detectron2"].status == "MISSING" and "install_detectron2" in found["detectron2"].mend
    assert found["numpy"].status == "ok"
    assert doctor.summary(list(found.values())) == "cannot train: torch, detectron2 missing or unusable"


def test_an_old_torch_is_as_good_as_none_and_an_old_timm_is_not(monkeypatch):
    monkeypatch.setattr(packages, "version_of", lambda names: {"torch": "2.3.1+cu118"}.get(names[0], "0.1"))
    old_torch = packages.check_package("torch", ("torch",), True)
    assert old_torch.status == "MISSING" and "2.3.1+cu118, older than 2.4" in old_torch.value
    assert packages.check_package("timm", ("timm",), False).status == "mend"


def test_a_stray_package_tools_is_named_and_ours_is_not(tmp_path):
    (tmp_path / "tools").mkdir()
    assert packages.check_stray_tools([str(tmp_path), str(ROOT)]) == []
    (tmp_path / "tools" / "__init__.py").touch()
    (stray,) = packages.check_stray_tools([str(tmp_path), str(ROOT), str(tmp_path)])
    assert stray.status == "mend" and str(tmp_path / "tools") in stray.value


def test_data_sets_present_partly_there_and_absent(tmp_path):
    for path in ("images/training", "images/validation", "annotations/training"):
        (tmp_path / "ADEChallengeData2016" / path).mkdir(parents=True)
    found = {finding.name: finding for finding in data_sets.check_data_sets(tmp_path)}
    assert found["ADE20K images"].status == "ok"
    assert found["ADE20K scenes"].status == "mend" and "lacks validation" in found["ADE20K scenes"].value
    assert "--check" in found["ADE20K scenes"].mend
    assert found["ADE20K panoptic"].status == "none" and "prepare_ade20k" in found["ADE20K panoptic"].mend
    (absent,) = data_sets.check_data_sets(tmp_path / "nowhere")
    assert "DETECTRON2_DATASETS" in absent.mend


def test_the_doctor_looks_where_the_data_sets_are_read(monkeypatch, tmp_path):
    """The paths are written again in the doctor, because it runs without the packages the readers need."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert data_sets.datasets_root() == datasets_root() == tmp_path
    looked_at = {
        str(tmp_path / data_set.folder / part) for data_set in data_sets.DATA_SETS for part in data_set.parts
    }
    read = {path for split in SPLIT_FOLDERS for path in panoptic_paths(tmp_path / FOLDER, split).values()}
    for config in ("coco/maskformer_lite0.yaml", "toy/maskformer_tiny.yaml"):
        named = load_config(ROOT / "configs" / config).DATASETS.COCO_PANOPTIC
        read |= {str(tmp_path / path) for paths in named.values() for path in paths.values()}
    assert len(read) == 6 + 6 + 6 and read <= looked_at


def test_results_that_cannot_be_written(tmp_path, monkeypatch):
    good = machine.check_writable(tmp_path / "not" / "yet")
    assert good.status == "ok" and str(tmp_path / "not" / "yet") in good.value

    def refuse(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(machine.tempfile, "TemporaryFile", refuse)
    bad = machine.check_writable(tmp_path / "not" / "yet")
    assert bad.status == "mend" and "Permission denied" in bad.value and "OUTPUT_DIR" in bad.mend


def test_machine_limits(tmp_path, monkeypatch):
    (tmp_path / "cpu.max").write_text("150000 100000\n")  # one and a half cores
    (tmp_path / "memory.max").write_text("2000000000\n")
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    assert machine.usable_cores() == 1
    assert machine.usable_memory() == pytest.approx(2.0)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine.usable_cores() >= 1
    assert machine.check_python((3, 9)).status == "MISSING"
    assert machine.check_shared_memory(0.064).status == "mend"


@pytest.mark.parametrize(("status", "code"), [("MISSING", 1), ("mend", 0)])
def test_only_what_is_missing_fails(status, code, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "examine", lambda: [Finding("packages", "numpy", status, "value", "do this")])
    assert doctor.main(["--json"]) == code
    (row,) = json.loads(capsys.readouterr().out)
    assert row == {
        "section": "packages", "name": "numpy", "status": status, "value": "value", "mend": "do this"
    }  # fmt: skip
    assert doctor.main([]) == code
    assert "-> do this" in capsys.readouterr().out


def test_runs_on_the_standard_library_alone(tmp_path):
    """As where nothing is installed: -S leaves site-packages out."""
    command = [sys.executable, "-S", "-E", "-s", str(ROOT / "tools" / "doctor.py"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    missing = {row["name"] for row in json.loads(done.stdout) if row["status"] == "MISSING"}
    assert {"torch", "numpy", "detectron2"} <= missing
