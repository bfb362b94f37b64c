"""metrics.json: a row of every step once, also after kills, resumes and damage."""

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mask_former.training.json_lines import JsonLines, keep_rows_before

ROOT = Path(__file__).resolve().parent.parent


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_keep_their_order_and_what_is_not_finite_becomes_null(tmp_path):
    path = tmp_path / "new" / "metrics.json"
    with JsonLines(path) as writer:
        writer.write({"loss": np.float32(0.5), "iteration": 19, "a": float("nan"), "b": [np.inf, 1]})
        assert path.read_text() == '{"loss": 0.5, "iteration": 19, "a": null, "b": [null, 1]}\n'
        writer.write({"iteration": 39})
        assert len(path.read_text().splitlines()) == 2
    writer.close()


def test_writing_again_appends(tmp_path):
    path = tmp_path / "metrics.json"
    for step in (19, 39):
        with JsonLines(path) as writer:
            writer.write({"iteration": step})
    assert path.read_text() == '{"iteration": 19}\n{"iteration": 39}\n'


def test_a_line_left_without_its_end_does_not_spoil_the_next_row(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 19}\n{"itera')
    with JsonLines(path) as writer:
        writer.write({"iteration": 39})
    assert path.read_text() == '{"iteration": 19}\n{"itera\n{"iteration": 39}\n'


def test_a_row_that_json_cannot_hold_leaves_no_half_line(tmp_path):
    path = tmp_path / "metrics.json"
    with JsonLines(path) as writer:
        with pytest.raises(TypeError):
            writer.write({"iteration": 19, "what": object()})
        writer.write({"iteration": 39})
    assert rows(path) == [{"iteration": 39}]


def test_rows_from_the_iteration_on_are_dropped_and_other_bytes_stay(tmp_path, caplog):
    path = tmp_path / "metrics.json"
    # Spacing, NaN, non-ASCII text and a row of evaluation without iteration: all as they were.
    before = b'{"iteration":19,  "loss": NaN}\n{"PQ": 34.70}\n{"iteration": 39, "name": "caf\xc3\xa9"}\n'
    path.write_bytes(before + b'{"iteration": 40}\n{"loss": 1.0, "iteration": 59}\n')
    with caplog.at_level(logging.WARNING):
        assert keep_rows_before(path, 40) == 2
    assert path.read_bytes() == before
    assert not caplog.records  # a resume is nothing to warn of
    assert list(tmp_path.iterdir()) == [path]


def test_damaged_lines_go_with_one_warning(tmp_path, caplog):
    path = tmp_path / "metrics.json"
    whole = b'{"iteration": 19}\n'
    damage = b"\xff\xfe\n" + b"\0\0\0\n" + b"17\n" + b"\n" + b"[" * 100_000 + b"\n"
    path.write_bytes(damage + whole + b'{"iteration": 39, "lo')
    with caplog.at_level(logging.WARNING):
        assert keep_rows_before(path, 1000) == 6
    assert path.read_bytes() == whole
    [record] = caplog.records
    assert "6 lines" in record.message and str(path) in record.message


def test_a_whole_last_row_without_newline_is_a_row(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 59}\n{"iteration": 39}')
    assert keep_rows_before(path, 40) == 1
    assert path.read_text() == '{"iteration": 39}\n'


def test_nothing_to_drop_leaves_the_file_alone(tmp_path):
    path = tmp_path / "metrics.json"
    assert keep_rows_before(path, 0) == 0
    assert not path.exists()
    path.write_text('{"iteration": 19}\n')
    inode = path.stat().st_ino
    assert keep_rows_before(path, 20) == 0
    assert path.stat().st_ino == inode


def test_from_the_start_nothing_is_kept(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 0}\n{"iteration": 19}\n')
    assert keep_rows_before(path, 0) == 2
    assert path.read_bytes() == b""


def test_after_a_kill_each_step_is_there_once(tmp_path):
    """A real process is killed between two rows; the next one goes on from an older checkpoint."""
    path = tmp_path / "metrics.json"
    code = (
        "import sys, time\n"
        "from mask_former.training.json_lines import JsonLines\n"
        "writer = JsonLines(sys.argv[1])\n"
        "for step in range(50): writer.write({'iteration': step, 'loss': 1 / (step + 1)})\n"
        "print('written', flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, path], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"written\n"
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert len(rows(path)) == 50  # each row was flushed, so the kill lost none
    assert keep_rows_before(path, 30) == 20
    with JsonLines(path) as writer:
        for step in range(30, 60):
            writer.write({"iteration": step})
    assert [row["iteration"] for row in rows(path)] == list(range(60))
