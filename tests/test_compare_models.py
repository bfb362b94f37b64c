"""tools/compare.py with models: the evaluation's own numbers, heatmaps, a kill, real images."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import panopticapi.evaluation as panopticapi
import pytest
import torch
from detectron2.data import DatasetCatalog

from mask_former.data.catalog import dataset_ids, dataset_metadata, thing_ids
from mask_former.data.coco_panoptic import register_coco_panoptic
from mask_former.data.id_map import read_id_map
from mask_former.evaluation.run import evaluate
from mask_former.prediction import build_blank_model
from tests.comparison_data import Saved, save_predictions
from tests.real_data import real_data
from tests.toy_models import OPTS, PISR_CONFIG, toy_models, weights_of
from tests.toy_run import CONFIG
from tools.compare import main
from tools.project import project_config

MOST = 4  # images of a data set whose labels are saved as predictions
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def toy(tmp_path):
    with toy_models(tmp_path) as folder:
        yield folder


def sides(folder):
    return [
        *("--baseline", str(CONFIG), str(weights_of(folder, CONFIG))),
        *("--pisr", str(PISR_CONFIG), str(weights_of(folder, PISR_CONFIG))),
    ]


def test_metrics_are_those_of_the_evaluation(toy):
    out = toy / "out"
    assert main([*sides(toy), "--input", "toy_val", "--output", str(out), "--opts", *OPTS]) == 0
    found = json.loads((out / "metrics.json").read_text())
    assert found["delta"]["sum_of"] == ["PQ", "mIoU", "AP"]
    for side, config in (("baseline", CONFIG), ("pisr", PISR_CONFIG)):
        cfg = project_config(config, [*OPTS, "OUTPUT_DIR", str(toy / side)])
        model = build_blank_model(cfg).eval()
        model.load_state_dict(torch.load(weights_of(toy, config))["model"])
        expected = evaluate(cfg, model)
        for name, task in (("PQ", "panoptic_seg"), ("mIoU", "sem_seg"), ("AP", "segm")):
            assert found[side][name] == pytest.approx(expected[task][name], nan_ok=True), (side, name)

    (first, _) = [json.loads(line) for line in (out / "images.jsonl").read_text().splitlines()]
    assert {"before", "after"} <= set(first["pictures"]), "heatmaps of the side with PISR"
    content = (out / "index.html").read_text(encoding="utf-8")
    assert "MODEL.MASK_FORMER.PREDICTOR_NAME" in content, "the configurations' difference"


def test_a_folder_needs_no_labels(toy):
    out, images = toy / "out", toy / "data/toy/val"
    assert main([*sides(toy), "--input", str(images), "--output", str(out), "--opts", *OPTS]) == 0
    assert len((out / "images.jsonl").read_text().splitlines()) == 2
    assert not (out / "metrics.json").exists()


def truth_as_predictions(name, folder, change):
    """Saved predictions of a registered data set from its labels, each changed by `change(ids, classes)`."""
    saved = []
    for record in DatasetCatalog.get(name)[:MOST]:
        ids = read_id_map(record["pan_seg_file_name"])
        classes = {s["id"]: s["category_id"] for s in record["segments_info"]}
        ids, classes = change(ids, classes)
        present = set(np.unique(ids).tolist())
        classes = {key: value for key, value in classes.items() if key in present}
        saved.append(Saved(record["image_id"], Path(record["file_name"]), ids, classes))
    return save_predictions(folder, dataset_metadata(name), saved)


def shifted(ids, classes):
    return np.roll(ids, ids.shape[1] // 12, axis=1), classes


def test_a_killed_comparison_goes_on_to_the_same_end(toy):
    project_config(CONFIG)
    truth_as_predictions("toy_train", toy / "same", lambda ids, classes: (ids, classes))
    truth_as_predictions("toy_train", toy / "shifted", shifted)
    given = ["--baseline", str(toy / "shifted"), "--pisr", str(toy / "same"), "--input", "toy_train"]
    given += ["--config-file", str(CONFIG)]
    assert main([*given, "--output", str(toy / "whole")]) == 0

    journal = toy / "killed/images.jsonl"
    process = subprocess.Popen(
        [sys.executable, "tools/compare.py", *given, "--output", str(toy / "killed")],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.read_bytes().count(b"\n")) and time.monotonic() < deadline:
        assert process.poll() is None or journal.exists()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with journal.open("ab") as file:
        file.write(b'{"index": 3, "name": "cut sh')  # what a kill in the middle of a line leaves
    done = [json.loads(line)["index"] for line in journal.read_bytes().splitlines()[:-1]]
    assert done and not (toy / "killed/index.html").exists() or len(done) == 4

    assert main([*given, "--output", str(toy / "killed")]) == 0
    for name in ("metrics.json", "metrics.md"):
        assert (toy / "killed" / name).read_text() == (toy / "whole" / name).read_text()
    pages = [(toy / name / "index.html").read_text() for name in ("whole", "killed")]
    assert pages[0] == pages[1]
    assert json.loads((toy / "whole/metrics.json").read_text())["pisr"]["PQ"] == pytest.approx(100)


def test_coco_images_with_133_classes(tmp_path):
    """Real images, labels with crowds: PQ of each is panopticapi's."""
    root = real_data("coco")
    name, annotations = "tests_compare_coco", root / "annotations"
    json_file, pngs = annotations / "panoptic_val2017.json", annotations / "panoptic_val2017"
    if name not in DatasetCatalog.list():
        register_coco_panoptic(name, root / "val2017", json_file, pngs)
    truth_as_predictions(name, tmp_path / "shifted", shifted)
    truth_as_predictions(name, tmp_path / "same", lambda ids, classes: (ids, classes))
    given = ["--baseline", tmp_path / "shifted", "--pisr", tmp_path / "same", "--input", name, "--first", 3]
    assert main([str(a) for a in (*given, "--output", tmp_path / "out")]) == 0

    metadata = dataset_metadata(name)
    of_dataset, things = dataset_ids(metadata), thing_ids(metadata)
    categories = {of_dataset[c]: {"id": of_dataset[c], "isthing": int(c in things)} for c in of_dataset}
    truth = {entry["image_id"]: entry for entry in json.loads(json_file.read_text())["annotations"]}
    saved = json.loads((tmp_path / "shifted/panoptic.json").read_text())["annotations"]
    records = [json.loads(line) for line in (tmp_path / "out/images.jsonl").read_text().splitlines()]
    for record, entry in zip(records, saved, strict=False):
        statistics = panopticapi.pq_compute_single_core(
            0, [(truth[entry["image_id"]], entry)], pngs, tmp_path / "shifted/panoptic", categories
        )
        expected = 100 * statistics.pq_average(categories, isthing=None)[0]["pq"]
        assert record["pq"]["baseline"] == pytest.approx(expected)
    content = (tmp_path / "out/index.html").read_text(encoding="utf-8")
    data = json.loads(re.search('id="data">(.*?)</script>', content).group(1))
    assert len(data["classes"]) == 133 and len(data["images"]) == 3
    assert min(image["delta"] for image in data["images"]) > 0
