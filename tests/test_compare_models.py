"""tools/compare.py with models: the evaluation's own numbers, heatmaps, a kill, real images."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import panopticapi.evaluation as panopticapi
import pytest
import torch
from detectron2.data import DatasetCatalog

from mask_former.data.catalog import dataset_ids, dataset_metadata, thing_ids
from mask_former.data.coco_panoptic import register_coco_panoptic
from mask_former.data.id_map import read_id_map
from mask_former.errors import run_cli
from mask_former.evaluation.run import evaluate
from mask_former.prediction import build_blank_model
from pisr_maskformer.visualization.differences import PanopticMap
from tests.comparison_data import Saved, compared_scenes, run, save_predictions
from tests.evaluation_data import CAT, DOG, SCENES, instance_output, metadata
from tests.real_data import real_data
from tests.toy_models import OPTS, PISR_CONFIG, toy_models, weights_of
from tests.toy_run import CONFIG
from tools.compare import main
from tools.comparison.sources import Prediction
from tools.project import project_config

MOST = 4  # images of a data set whose labels are saved as predictions
ROOT = Path(__file__).resolve().parent.parent
# The tool, which waits for its end when the second image is drawn and has no record yet.
HANGS = """
import sys, time
sys.path[:0] = [".", "tools"]
import tools.compare
from tools.comparison.journal import Journal
add = Journal.add
def hang(journal, record, instances):
    if record["index"] == 1:
        (journal.folder / "second").touch()
        time.sleep(600)
    add(journal, record, instances)
Journal.add = hang
tools.compare.main(sys.argv[1:])
"""


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
        assert found[side]["mIoU"] > 0, "untrained models have no PQ and AP: another test makes those by hand"

    (first, _) = [json.loads(line) for line in (out / "images.jsonl").read_text().splitlines()]
    assert {"before", "after"} <= set(first["pictures"]), "heatmaps of the side with PISR"
    content = (out / "index.html").read_text(encoding="utf-8")
    assert "MODEL.MASK_FORMER.PREDICTOR_NAME" in content, "the configurations' difference"


class HandMade:
    """A side whose answers are made from the labels of the two scenes, instances with scores included."""

    has_semantic, has_instances, run = False, True, None

    def __init__(self, title, answers):
        self.title, self.metadata, self.answers = title, metadata(), answers

    def identity(self):
        return [self.title]

    def described(self):
        return "made by hand"

    def config(self):
        return None

    def predict(self, item, rgb):
        panoptic, found = self.answers[item.index]
        return Prediction(panoptic, instances=instance_output(*found)["instances"])


def test_ap_and_pq_of_answers_made_by_hand(tmp_path):
    """Things to find: a cat in the first scene (beside a crowd), a dog of 3×5 pixels in the second."""
    (first, first_segments), (second, second_segments) = SCENES
    maps = [PanopticMap(first, first_segments), PanopticMap(second, second_segments)]
    cat, dog = first == 301, second == 9
    right = [(maps[0], [(cat, CAT, 0.9)]), (maps[1], [(dog, DOG, 0.9)])]
    part = dog.copy()
    part[:, 6] = False  # 12 of 15 pixels: IoU 0.8 passes 7 of the 10 thresholds from 0.5 to 0.95
    shrunk = PanopticMap(np.where(part, second, np.where(dog, 0, second)), second_segments)
    wrong = [(maps[0], []), (shrunk, [(part, DOG, 0.9)])]
    sources = {"baseline": HandMade("baseline", wrong), "PISR": HandMade("PISR", right)}
    with (
        compared_scenes(tmp_path),
        mock.patch("tools.compare.open_source", lambda given, title, overrides: sources[title]),
    ):
        assert run(tmp_path) == 0
    found = json.loads((tmp_path / "out/metrics.json").read_text())
    assert found["pisr"]["AP"] == pytest.approx(100) and found["pisr"]["PQ"] == pytest.approx(100)
    assert found["baseline"]["AP"] == pytest.approx((0 + 70) / 2), "no cat, most of a dog"
    # sky, road, cat right and the dog at 0.8
    assert found["baseline"]["PQ"] == pytest.approx((3 * 100 + 80) / 4)
    assert found["delta"]["value"] == pytest.approx(
        sum(found["pisr"][name] - found["baseline"][name] for name in ("PQ", "mIoU", "AP"))
    )
    table = (tmp_path / "out/metrics.md").read_text()
    assert "gain in AP" in table and "| 70.0 | 100.0 | +30.0 |" in table


def test_a_model_that_diverged_is_a_line_an_image(toy, capfd):
    weights = weights_of(toy, PISR_CONFIG)
    state = torch.load(weights)["model"]
    torch.save({"model": {key: torch.full_like(value, torch.nan) for key, value in state.items()}}, weights)
    given = [*sides(toy), "--input", "toy_val", "--output", str(toy / "out"), "--opts", *OPTS]
    assert run_cli(lambda: main(given)) == 1
    errors = [line for line in capfd.readouterr().err.splitlines() if "error:" in line]
    assert len(errors) == 3 and "2 of 2 images failed" in errors[2]
    for line in errors[:2]:
        assert re.search(
            rf"error: \S+\.\w+: the model {weights} gives values that are not finite; did its", line
        )


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
        [sys.executable, "-c", HANGS, *given, "--output", str(toy / "killed")],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    second = toy / "killed/second"
    while not second.exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert list((toy / "killed/images").glob("00001_*_panel.jpg")), "killed in the middle of an image"
    with journal.open("ab") as file:
        file.write(b'{"index": 3, "name": "cut sh')  # what a kill in the middle of a line leaves
    done = [json.loads(line)["index"] for line in journal.read_bytes().splitlines()[:-1]]
    assert done == [0] and not (toy / "killed/index.html").exists()

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

    classes = dataset_metadata(name)
    of_dataset, things = dataset_ids(classes), thing_ids(classes)
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
