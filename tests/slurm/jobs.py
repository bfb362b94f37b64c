"""Training jobs of tests: submitted from a copy of the code, watched by their files, compared."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.slurm.cluster import Cluster, wait_until
from tests.slurm.launcher import Launcher, copy_code
from tests.toy_run import TINY, render

ITERATIONS = 12
OPTIONS = TINY | {
    "MODEL.MASK_FORMER.DROPOUT": "0.1",
    "SOLVER.IMS_PER_BATCH": "4",
    "SOLVER.MAX_ITER": str(ITERATIONS),
    "SOLVER.CHECKPOINT_PERIOD": "4",
    "DATALOADER.NUM_WORKERS": "1",
    "LOG.PERIOD": "1",
    "DATASETS.TEST": "()",
    "SEED": "3",
}
NOT_COMPARED = {"time", "data_time", "memory_mb", "evaluation_time"}


@dataclass
class Workplace:
    """A copy of the code under git, a data set, and what submits from there."""

    folder: Path
    code: Path
    running: Cluster | None
    launcher: Launcher

    @property
    def cluster(self) -> Cluster:
        assert self.running, "this place has no Slurm"
        return self.running

    def submit(self, run: Path, *flags: str, expect: int = 0, **options: str) -> str:
        """Submit the toy configuration; returns what the launcher printed. `options`: "__" for the dots."""
        keys = OPTIONS | {key.replace("__", "."): value for key, value in options.items()}
        config = self.code / "configs/toy/maskformer_tiny.yaml"
        more = [] if "--sweep" in flags else ["--config", str(config)]
        pairs = [text for pair in keys.items() for text in pair]
        code, said = self.launcher(*more, *flags, "--run-dir", str(run), "--", *pairs)
        assert code == expect, said
        return said

    @contextmanager
    def edited(self, file: str, line: str, more: str) -> Iterator[None]:
        """The code with `more` after a line of it."""
        path = self.code / file
        original = path.read_text()
        assert original.count(line) == 1
        path.write_text(original.replace(line, line + more))
        try:
            yield
        finally:
            path.write_text(original)

    def wait_for_rows(self, run: Path, count: int, seconds: float = 90) -> None:
        wait_until(lambda: len(steps(run)) >= count, seconds)

    def wait_for_state(self, job: str, *states: str, seconds: float = 240) -> dict[str, str]:
        wait_until(lambda: self.cluster.job(job)["JobState"] in states, seconds)
        return self.cluster.job(job)


def prepare(folder: Path, cluster: Cluster | None) -> Workplace:
    data = render(folder / "data")
    code = copy_code(folder / "code")
    git = ["git", "-C", str(code), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "as submitted"]):
        subprocess.run([*git, *command], check=True, timeout=60)
    environment = (cluster.environment if cluster else dict(os.environ)) | {
        "DETECTRON2_DATASETS": str(data),
        "OMP_NUM_THREADS": "1",
    }
    return Workplace(folder, code, cluster, Launcher(code, environment))


def rows(run: Path) -> list[dict[str, Any]]:
    """The log without what is measured with a clock; a last line that is being written is left out."""
    if not (run / "metrics.json").exists():
        return []
    lines = (run / "metrics.json").read_text().split("\n")[:-1]
    return [{k: v for k, v in json.loads(line).items() if k not in NOT_COMPARED} for line in lines]


def steps(run: Path) -> list[dict[str, Any]]:
    return [row for row in rows(run) if "total_loss" in row]


def launch_record(run: Path) -> dict[str, Any]:
    return json.loads((run / "launch.json").read_text())


def starts(run: Path) -> list[dict[str, Any]]:
    return json.loads((run / "run.json").read_text())["starts"]


def log(run: Path, rank: int = 0) -> str:
    record = launch_record(run)
    file = Path(record["logs"]) / f"{record['job']}_{rank}_log.out"
    return file.read_text() if file.exists() else ""


def assert_same_run(run: Path, other: Path) -> None:
    """Rows once each, losses, metrics and weights bit for bit."""
    assert [row["iteration"] for row in steps(run)] == list(range(ITERATIONS))
    assert rows(run) == rows(other)
    ours, theirs = (
        torch.load(folder / "model_final.pth", weights_only=True)["model"] for folder in (run, other)
    )
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def processes_naming(text: str, variable: str = "") -> list[int]:
    """Processes whose command line holds the text, and their environment the variable with its value."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                wanted = {os.fsencode(variable)} if variable else set()
                names_it = os.fsencode(text) in (entry / "cmdline").read_bytes()
                if names_it and wanted <= set((entry / "environ").read_bytes().split(b"\0")):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found
