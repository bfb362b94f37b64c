"""Which evaluators a configuration gets, the metrics file, the tables, and two processes against one."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as multiprocessing
from detectron2.config import get_cfg

from mask_former.config import add_mask_former_config
from mask_former.errors import InputError
from mask_former.evaluation import (
    InstanceEvaluator,
    PanopticEvaluator,
    SemanticEvaluator,
    build_evaluators,
    write_metrics,
)
from mask_former.evaluation.tables import class_table, summary_table
from tests.evaluation_data import (
    CAT,
    DOG,
    SCENES,
    class_scores,
    ground_truth,
    instance_output,
    panoptic_output,
    register,
    unregister,
    write_dataset,
)


def config(**switches: bool):
    cfg = get_cfg()
    add_mask_former_config(cfg)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 4
    for key, value in switches.items():
        cfg.MODEL.MASK_FORMER.TEST[f"{key}_ON"] = value
    return cfg


@pytest.fixture
def dataset(tmp_path):
    """Registers the tiny data set; `dataset(key)` is its name, without that key in its records."""
    names = []

    def make(without: str = "") -> str:
        names.append(f"tiny_without_{without}")
        register(names[-1], [{k: v for k, v in r.items() if k != without} for r in write_dataset(tmp_path)])
        return names[-1]

    yield make
    for name in names:
        unregister(name)


def kinds(evaluators) -> list[type]:
    return [type(evaluator) for evaluator in evaluators._evaluators]


def test_what_is_switched_on_is_evaluated(dataset, tmp_path):
    name = dataset()
    assert kinds(build_evaluators(config(), name, tmp_path)) == [SemanticEvaluator]
    everything = config(PANOPTIC=True, SEMANTIC=True, INSTANCE=True)
    evaluators = build_evaluators(everything, name, tmp_path, keep_predictions=True)
    assert kinds(evaluators) == [PanopticEvaluator, SemanticEvaluator, InstanceEvaluator]
    truths = {id(evaluator.ground_truth) for evaluator in evaluators._evaluators}
    assert len(truths) == 1, "labels are read once for all"
    assert (tmp_path / "panoptic").is_dir(), "predictions are kept there"


def test_what_is_not_labelled_is_left_out_and_said(dataset, tmp_path, caplog):
    name = dataset(without="pan_seg_file_name")
    cfg = config(PANOPTIC=True, SEMANTIC=True, INSTANCE=True)
    assert kinds(build_evaluators(cfg, name, tmp_path, keep_predictions=True)) == [SemanticEvaluator]
    for key in ("PANOPTIC_ON", "INSTANCE_ON"):
        assert f"no ground truth for {key}" in caplog.text
    assert "none will be" in caplog.text


def test_nothing_to_evaluate_is_an_input_error(dataset, tmp_path):
    name = dataset(without="pan_seg_file_name")
    with pytest.raises(InputError, match="it has semantic ground truth and .* has PANOPTIC_ON switched on"):
        build_evaluators(config(PANOPTIC=True, SEMANTIC=False), name, tmp_path)


def test_other_class_count_is_an_input_error(dataset, tmp_path):
    cfg = config()
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 150
    with pytest.raises(InputError, match="has 4 classes, but MODEL.SEM_SEG_HEAD.NUM_CLASSES is 150"):
        build_evaluators(cfg, dataset(), tmp_path)


@pytest.mark.parametrize("name", ["no_such_data_set", "coco_2017_test"])
def test_unusable_data_set_is_an_input_error(name, tmp_path):
    with pytest.raises(InputError, match=name):
        build_evaluators(config(), name, tmp_path)


def test_metrics_file(tmp_path):
    path = tmp_path / "new" / "metrics.json"
    write_metrics(
        {"panoptic_seg": {"PQ": np.float32(0.5), "PQ_th": math.nan, "n": np.int64(3), "a": [1, "ü"]}}, path
    )
    assert json.loads(path.read_text("utf-8")) == {
        "panoptic_seg": {"PQ": 0.5, "PQ_th": None, "n": 3, "a": [1, "ü"]}
    }
    assert [file.name for file in path.parent.iterdir()] == ["metrics.json"], "no temporary file stays"
    with pytest.raises(TypeError):
        write_metrics({"panoptic_seg": object()}, path)
    assert json.loads(path.read_text("utf-8"))["panoptic_seg"]["n"] == 3, "a failed write leaves the old file"


def test_tables():
    columns = {"PQ": np.array([12.3456, np.nan, 0.0]), "TP": np.array([3, 0, 0])}
    lines = class_table(["sky", "cat", "dog"], columns).splitlines()
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == ["sky", "12.346", "3"]
    assert [cell.strip() for cell in lines[3].split("|")[1:-1]] == ["dog", "0.000", "0"]
    assert lines[4] == "not present, left out of the means (1): cat"
    nothing = class_table(["sky"], {"PQ": np.array([np.nan])})
    assert nothing.splitlines()[-1] == "not present, left out of the means (1): sky"
    assert "absent" in summary_table({"all": {"PQ": 1.0}, "things": {"PQ": math.nan}})


def evaluate_share(folder: Path, rank: int, processes: int) -> list[dict | None]:
    """Results of the three evaluators when this process sees every `processes`-th scene."""
    truth = ground_truth(folder)
    rng = np.random.default_rng(0)
    classes = [rng.integers(0, 4, SCENES[0][0].shape) for _ in range(2)]
    objects = [(SCENES[0][0] == 301, CAT, 0.8)], [(SCENES[1][0] == 5, DOG, 0.9)]
    results = []
    for evaluator in (
        PanopticEvaluator(truth, folder / f"of_{processes}", keep_predictions=True),
        SemanticEvaluator(truth),
        InstanceEvaluator(truth),
    ):
        for index in range(rank, 2, processes):
            ids, infos = SCENES[index]
            output = {
                **panoptic_output(ids, infos),
                "sem_seg": class_scores(classes[index]),
                **instance_output(*objects[index]),
            }
            evaluator.process([{"file_name": truth.records[index]["file_name"]}], [output])
        results.append(evaluator.evaluate())
    return results


def run_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)  # a forked process must not use the thread pool it inherits
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    results = evaluate_share(folder, rank, 2)
    write_metrics({"results": results}, folder / "two.json")
    if rank == 1:
        (folder / "rank_1.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    write_metrics({"results": evaluate_share(tmp_path, 0, 1)}, tmp_path / "one.json")
    # forked, because two fresh interpreters would spend half a minute on imports
    ranks = multiprocessing.start_processes(run_rank, (tmp_path,), 2, join=False, start_method="fork")
    assert ranks.join(timeout=60) or ranks.join(timeout=60), "one call returns when the first rank ends"
    one, two = (json.loads((tmp_path / f"{number}.json").read_text()) for number in ("one", "two"))
    assert two == one
    assert one["results"][0]["panoptic_seg"]["PQ_st"] == 100
    assert one["results"][2]["segm"]["AP"] == pytest.approx(50), "the cat is found, the dog is not"
    assert json.loads((tmp_path / "rank_1.json").read_text()) == [None, None, None]
    kept = [json.loads((tmp_path / f"of_{number}" / "panoptic.json").read_text()) for number in (1, 2)]
    assert kept[0] == kept[1] and len(kept[0]["annotations"]) == 2
    assert len(os.listdir(tmp_path / "of_2" / "panoptic")) == 2
