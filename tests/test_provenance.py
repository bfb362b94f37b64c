"""Checksum of the data, facts of the machine, and the report on the environment."""

import copy
import importlib.metadata
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from mask_former.training.provenance import data_checksum, environment_text, machine_facts


def records(root: str = "/data", count: int = 3) -> list[dict]:
    return [
        {
            "file_name": f"{root}/scenes/images/training/{index}.jpg",
            "image_id": f"image_{index}",
            "height": 480,
            "width": 640,
            "pan_seg_file_name": f"{root}/scenes/panoptic/{index}.png",
            "segments_info": [
                {"id": 7, "category_id": 3, "iscrowd": 0, "isthing": True, "area": 12, "bbox": [0, 0, 3, 4]},
                {"id": 9, "category_id": 5, "iscrowd": 0, "isthing": False, "area": 20, "bbox": [3, 0, 4, 5]},
            ],
        }
        for index in range(count)
    ]


def test_equal_records_are_equal_wherever_the_data_lies(monkeypatch, tmp_path):
    expected = data_checksum({"train": records()})
    assert len(expected) == 64 and set(expected) <= set("0123456789abcdef")
    for root in ("/mnt/other/place", "datasets", "../up", "/scenes/images"):
        assert data_checksum({"train": records(root)}) == expected, root
    monkeypatch.chdir(tmp_path)
    assert data_checksum({"train": records("datasets")}) == expected


def test_the_order_of_keys_and_of_data_sets_does_not_matter():
    one, two = records("/a"), records("/b", count=2)
    turned = [dict(reversed(record.items())) for record in one]
    for record in turned:
        record["segments_info"] = [dict(reversed(segment.items())) for segment in record["segments_info"]]
    assert data_checksum({"one": one, "two": two}) == data_checksum({"two": two, "one": turned})


def test_every_change_of_the_data_matters():
    def changed(change) -> str:
        new = copy.deepcopy(records())
        change(new)
        return data_checksum({"train": new})

    changes = {
        "image": lambda new: new[1].update(file_name="/data/scenes/images/training/x.jpg"),
        "image folder": lambda new: new[1].update(file_name="/data/scenes/images/other/1.jpg"),
        "label map": lambda new: new[1].update(pan_seg_file_name="/data/scenes/panoptic/x.png"),
        "label folder": lambda new: [
            record.update(pan_seg_file_name=record["pan_seg_file_name"].replace("panoptic", "pan"))
            for record in new
        ],
        "size": lambda new: new[1].update(height=481),
        "class": lambda new: new[1]["segments_info"][0].update(category_id=4),
        "crowd": lambda new: new[1]["segments_info"][0].update(iscrowd=1),
        "area": lambda new: new[1]["segments_info"][1].update(area=21),
        "a segment less": lambda new: new[2]["segments_info"].pop(),
        "order of segments": lambda new: new[0]["segments_info"].reverse(),
        "order of records": lambda new: new.reverse(),
        "a record less": lambda new: new.pop(),
        "nothing": lambda new: None,
    }
    sums = {name: changed(change) for name, change in changes.items()}
    assert sums["nothing"] == data_checksum({"train": records()})
    assert len(set(sums.values())) == len(changes), sums


def test_where_one_data_set_ends_matters():
    all_five = records(count=5)
    splits = [
        {"a": all_five[:3], "b": all_five[3:]},
        {"a": all_five[:2], "b": all_five[2:]},
        {"a": all_five},
        {"a": all_five, "b": []},
    ]
    assert len({data_checksum(split) for split in splits}) == 4


def test_numpy_codes_and_paths_count_as_their_values():
    plain = [{"file_name": "/d/1.jpg", "height": 4, "box": [1.5, 2.0], "counts": "abc"}]
    rich = [
        {
            "file_name": Path("/d/1.jpg"),
            "height": np.int64(4),
            "box": np.array([1.5, 2.0]),
            "counts": b"abc",
        }
    ]
    assert data_checksum({"a": rich}) == data_checksum({"a": plain})
    with pytest.raises(TypeError, match="holds a set"):
        data_checksum({"a": [{"file_name": "1.jpg", "x": {1}}]})


def test_no_data_and_records_without_files():
    assert data_checksum({}) != data_checksum({"a": []}) != data_checksum({"a": [{"height": 3}]})


def test_facts_of_this_machine(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "123")
    monkeypatch.setenv("API_TOKEN", "secret")
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    facts = machine_facts()
    assert facts["torch"] == torch.__version__ and facts["numpy"] == np.__version__
    assert facts["variables"]["SLURM_JOB_ID"] == "123" and "SLURM_RESTART_COUNT" not in facts["variables"]
    assert "secret" not in str(facts)
    assert 1 <= facts["cpus"] <= os.cpu_count()
    assert len(facts["gpus"]) == torch.cuda.device_count()


def test_the_environment_lists_packages_sorted_and_the_same_every_time(monkeypatch):
    monkeypatch.setenv("API_TOKEN", "very secret")
    text = environment_text()
    report, packages = text.rstrip("\n").rsplit("\n\n", 1)
    listed = packages.split("\n")
    assert f"numpy=={np.__version__}" in listed and "sys.platform" in report
    assert listed == sorted(set(listed), key=str.lower) and all("==" in line for line in listed)
    assert "very secret" not in text
    assert environment_text() == text


def test_a_broken_installation_does_not_stop_a_run(monkeypatch, tmp_path, caplog):
    def fails() -> str:
        raise RuntimeError("no compiler")

    (tmp_path / "left_behind-1.0.dist-info").mkdir()  # without its METADATA
    good = tmp_path / "good-2.0.dist-info"
    good.mkdir()
    (good / "METADATA").write_text("Metadata-Version: 2.1\nName: good\nVersion: 2.0\n")
    distributions = importlib.metadata.distributions
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: distributions(path=[str(tmp_path)]))
    monkeypatch.setattr("mask_former.training.provenance.collect_env_info", fails)
    assert environment_text() == "detectron2's report failed: no compiler\n\ngood==2.0\n"
    assert "no compiler" in caplog.text
