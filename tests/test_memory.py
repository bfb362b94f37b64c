"""Memory that does not grow with a run's length, nor with the number of loader workers."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from toy_run import CONFIG, arguments, render

from mask_former.data.loader import build_training_loader
from tests.resumable import RunServer

SMALLEST = {
    "MODEL__BACKBONE__NAME": "TinyBackbone",
    "MODEL__SEM_SEG_HEAD__CONVS_DIM": 32,
    "MODEL__SEM_SEG_HEAD__MASK_DIM": 32,
    "MODEL__MASK_FORMER__HIDDEN_DIM": 16,
    "MODEL__MASK_FORMER__DIM_FEEDFORWARD": 16,
    "MODEL__MASK_FORMER__NUM_OBJECT_QUERIES": 6,
    "MODEL__PISR__NUM_INSTANCES": 4,
    "INPUT__MIN_SIZE_TRAIN": "(32,)",
    "DATALOADER__NUM_WORKERS": 1,
    "DATASETS__TEST": "()",
}


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def resident_mb(process: int) -> float:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def private_mb(process: int) -> float:
    """Memory that belongs to this process alone."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 2**10


@pytest.mark.slow
def test_two_thousand_iterations_need_the_memory_of_three_hundred(tmp_path: Path) -> None:
    """PISR on the smallest network; trainer and worker are looked at every hundred iterations."""
    server, folder = RunServer(render(tmp_path / "datasets")), tmp_path / "run"
    options = {**SMALLEST, "SOLVER__MAX_ITER": 2000, "SOLVER__CHECKPOINT_PERIOD": 500, "LOG__PERIOD": 100}
    config = CONFIG.with_name("maskformer_tiny_pisr.yaml")
    run = server.start(arguments(folder, config=config, **options), tmp_path / "log")
    seen: dict[int, tuple[float, float]] = {}
    metrics = folder / "metrics.json"
    while len(seen) < 19:
        time.sleep(0.05)
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        iteration = json.loads(lines[-1])["iteration"] + 1 if lines else 0
        workers = children(run)
        if iteration and iteration not in seen and workers:
            seen[iteration] = (resident_mb(run), resident_mb(workers[0]))
        assert workers or iteration in (0, 2000), (tmp_path / "log").read_text()[-2000:]
    assert server.wait(run) == 0
    server.close()
    early = [value for iteration, value in sorted(seen.items()) if 300 <= iteration <= 600]
    late = [value for iteration, value in sorted(seen.items()) if iteration >= 1600]
    for who, name in ((0, "trainer"), (1, "worker")):
        growth = max(value[who] for value in late) - max(value[who] for value in early)
        assert growth < 3, (name, growth, seen)  # MB; one number kept per loss and iteration would be more


def records() -> list[dict[str, Any]]:
    """Some 50 MB of records, of small objects as annotations are."""
    return [
        {"id": index, "segments_info": [{"id": f"{index} {k}", "area": float(index + k)} for k in range(20)]}
        for index in range(10_000)
    ]


def read(record: dict[str, Any]) -> int:
    return sum(len(segment["id"]) for segment in record["segments_info"])


def growth_of_workers(loader: Any, samples: int) -> float:
    """MB that each of two workers comes to own while it reads."""
    batches: Iterator[Any] = iter(loader)
    next(batches)
    workers = children(os.getpid())[-2:]
    before = [private_mb(worker) for worker in workers]
    for _ in range(samples // 100):
        next(batches)
    after = [private_mb(worker) for worker in workers]
    del batches
    return max(b - a for a, b in zip(before, after, strict=True))


def test_workers_share_the_records() -> None:
    """Reading every record gives a worker no copy of them; a plain list in its place would."""
    given = records()
    loader = build_training_loader(given, read, seed=0, batch_size=100, num_workers=2)
    shared = growth_of_workers(loader, 20_000)
    loader = build_training_loader(given, read, seed=0, batch_size=100, num_workers=2)
    loader.dataset.records = given
    copied = growth_of_workers(loader, 20_000)
    assert copied > 20, copied
    assert shared < copied / 5, (shared, copied)
