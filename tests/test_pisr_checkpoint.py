"""A baseline's checkpoint, from a real file, in a PISR model: what is missing, and that it is said."""

import logging

import pytest
import torch

from mask_former.checkpoint import load_weights
from mask_former.training.checkpointer import Checkpointer
from tests.tiny_pisr import BASELINE, tiny_pisr


def through_load_weights(model, path):
    return load_weights(model, path)


def through_the_trainers_checkpointer(model, path):
    checkpointer = Checkpointer(model)
    checkpointer.resume_or_load(str(path), resume=False)
    return checkpointer.report


@pytest.mark.parametrize("load", [through_load_weights, through_the_trainers_checkpointer])
def test_baseline_file_lacks_exactly_what_pisr_adds_and_the_log_says_so(load, tmp_path, caplog, monkeypatch):
    baseline, model = tiny_pisr(path=BASELINE, seed=5), tiny_pisr()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.save({"model": baseline.state_dict(), "iteration": 7}, tmp_path / "baseline.pth")

    said = logging.getLogger("mask_former.checkpoint")
    monkeypatch.setattr(said, "handlers", [caplog.handler])  # whatever other tests made of its parents
    with caplog.at_level(logging.INFO, said.name):
        report = load(model, tmp_path / "baseline.pth")

    added = {name for name in before if name.startswith("sem_seg_head.predictor.pisr.")}
    assert added and set(report.missing) == added
    assert not report.unexpected and not report.mismatched
    loaded = model.state_dict()
    assert set(report.matched) == loaded.keys() - added == baseline.state_dict().keys()
    assert all(torch.equal(loaded[name], baseline.state_dict()[name]) for name in report.matched)
    assert all(torch.equal(loaded[name], before[name]) for name in added)
    message = next(record.getMessage() for record in caplog.records if record.name == said.name)
    counts = f"{len(report.matched)} entries matched, {len(added)} missing, 0 unexpected, 0 of another shape"
    assert f"baseline.pth: {counts}" in message
    assert f"missing: sem_seg_head.predictor.pisr.* ({len(added)} entries)" in message
