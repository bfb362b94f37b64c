"""Rows of the log: means over a period and over processes, files gone on with, warnings."""

import json
import math
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mask_former.training.log import TrainingLog, Window, combine, peak_memory_mb
from mask_former.training.writers import JsonWriter, TensorBoardWriter, build_writers
from tests.heard import heard
from tests.tiny import tiny_config


class Rows:
    """A writer that keeps what it is given."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, Any]]] = []

    def write(self, iteration: int, numbers: Any) -> None:
        self.rows.append((iteration, dict(numbers)))

    def close(self) -> None:
        self.rows.append((-1, {}))


def timed(loss: float, **more: float) -> dict[str, float]:
    return {"total_loss": loss, "time": 2.0, "data_time": 0.1, **more}


def test_a_row_is_the_mean_of_its_period_and_the_last_one_of_what_is_left() -> None:
    rows = Rows()
    log = TrainingLog(period=3, max_iterations=8, writers=[rows])
    for iteration, loss in enumerate([1.0, 2.0, 6.0, 10.0, math.nan, 20.0, 7.0, 8.0]):
        log.add(iteration, timed(loss), {"image_ids": [iteration]})
    assert [iteration for iteration, _ in rows.rows] == [2, 5, 7]
    assert [row["total_loss"] for _, row in rows.rows] == [3.0, 15.0, 7.5]  # what is no number does not count
    assert [row["image_ids"] for _, row in rows.rows] == [[2], [5], [7]]
    log.close()
    assert rows.rows[-1] == (-1, {})


def test_a_period_cut_by_a_resume_has_the_row_of_an_undisturbed_one() -> None:
    first, resumed, rows = TrainingLog(4, 8), TrainingLog(4, 8, [Rows()]), Rows()
    resumed.writers = [rows]
    for iteration, loss in ((0, 1.0), (1, 2.0)):
        first.add(iteration, timed(loss))
    resumed.window.load_state_dict(json.loads(json.dumps(first.window.state_dict())))
    for iteration, loss in ((2, 4.0), (3, 9.0)):
        resumed.add(iteration, timed(loss))
    assert rows.rows[0][0] == 3 and rows.rows[0][1]["total_loss"] == 4.0


def test_a_window_without_any_number_has_no_mean() -> None:
    window = Window()
    window.add({"gradient_norm": math.inf})
    assert math.isnan(window.means()["gradient_norm"])


def test_processes_together() -> None:
    rows = [
        {"total_loss": 2.0, "targets": 5.0, "time": 1.0, "data_time": 0.5, "memory_mb": 10.0},
        {"total_loss": 4.0, "targets": 0.0, "time": 3.0, "data_time": 0.1, "memory_mb": 30.0},
    ]
    together = {"total_loss": 3.0, "targets": 5.0, "time": 3.0, "data_time": 0.5, "memory_mb": 30.0}
    assert combine(rows) == together
    assert combine([]) == {}


def test_waiting_for_data_is_warned_of() -> None:
    log = TrainingLog(period=1, max_iterations=100)
    with heard("mask_former.training.log") as warnings:
        log.add(0, {"total_loss": 1.0, "time": 1.0, "data_time": 0.9})  # the workers start
        for iteration in range(1, 11):
            log.add(iteration, {"total_loss": 1.0, "time": 1.0, "data_time": 0.19})
        assert not warnings
        for iteration in range(11, 29):
            log.add(iteration, {"total_loss": 1.0, "time": 1.0, "data_time": 0.35})
    assert len(warnings) == 2  # at the first such row, and ten rows later
    assert "35% of the time" in warnings[0] and "DATALOADER.NUM_WORKERS" in warnings[0]


def test_json_rows_from_a_resumes_start_on_come_again(tmp_path: Path) -> None:
    writer = JsonWriter(tmp_path, start=0)
    for iteration in range(4):
        writer.write(iteration, {"total_loss": float(iteration), "gradient_norm": math.nan})
    writer.close()
    resumed = JsonWriter(tmp_path, start=2)
    resumed.write(2, {"total_loss": 20.0})
    assert [(row["iteration"], row["total_loss"]) for row in resumed.rows()] == [
        (0, 0.0),
        (1, 1.0),
        (2, 20.0),
    ]
    assert resumed.rows()[0]["gradient_norm"] is None
    resumed.close()


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path: Path) -> None:
    for start, value in ((0, 1.0), (2, 5.0)):
        writer = TensorBoardWriter(tmp_path, start)
        for iteration in range(start, 4):
            writer.write(iteration, {"total_loss": value, "image_ids": ["a"]})
        writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("total_loss")] == [
        (0, 1.0),
        (1, 1.0),
        (2, 5.0),
        (3, 5.0),
    ]


class FakeWandb(types.ModuleType):
    """What is used of Weights & Biases."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []

    def init(self, **options: Any) -> Any:
        self.begun.append(options)
        return types.SimpleNamespace(
            log=lambda numbers, step: self.logged.append((step, numbers)), finish=lambda: None
        )


def test_weights_and_biases_gets_the_numbers_and_a_resume_goes_on_with_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    cfg = tiny_config({"OUTPUT_DIR": str(tmp_path), "LOG.WANDB_PROJECT": "pisr", "LOG.TENSORBOARD": False})
    for start in (0, 1):
        writers = build_writers(cfg, start)
        assert len(writers) == 2
        for writer in writers:
            writer.write(start, {"total_loss": 2.0, "image_ids": ["a"]})
            writer.close()
    assert wandb.logged == [(0, {"total_loss": 2.0}), (1, {"total_loss": 2.0})]
    first, second = wandb.begun
    assert first["id"] == second["id"] == (tmp_path / "wandb_id.txt").read_text()
    assert (first["project"], first["resume"], second["resume"]) == ("pisr", "allow", "allow")


def test_without_weights_and_biases_a_run_goes_on_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it fails
    with heard("mask_former.training.writers") as warnings:
        writers = build_writers(tiny_config({"OUTPUT_DIR": str(tmp_path), "LOG.WANDB_PROJECT": "pisr"}), 0)
    assert [type(writer) for writer in writers] == [JsonWriter, TensorBoardWriter]
    assert len(warnings) == 1 and "pip install wandb" in warnings[0]
    for writer in writers:
        writer.close()


def test_peak_memory_is_that_of_this_process() -> None:
    assert 50 < peak_memory_mb() < 100_000
