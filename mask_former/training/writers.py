"""Where the rows of a run go: metrics.json always; TensorBoard and Weights & Biases as LOG says."""

import json
import logging
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from detectron2.config import CfgNode
from torch.utils.tensorboard import SummaryWriter

from mask_former.training.json_lines import JsonLines, keep_rows_before

logger = logging.getLogger(__name__)


class Writer(Protocol):
    """Takes a row: numbers by name, and lists or texts that a kind of file without them leaves out."""

    def write(self, iteration: int, numbers: Mapping[str, Any]) -> None: ...

    def sync(self) -> None:
        """Bring what was written to where it is kept."""

    def close(self) -> None: ...


class JsonWriter:
    """metrics.json, a row a line; rows from `start` on are dropped first: they come again."""

    def __init__(self, folder: Path, start: int) -> None:
        self.path = folder / "metrics.json"
        keep_rows_before(self.path, start)
        self.lines = JsonLines(self.path)

    def rows(self) -> list[dict[str, Any]]:
        """All rows of the file."""
        return [json.loads(line) for line in self.path.read_bytes().splitlines()]

    def write(self, iteration: int, numbers: Mapping[str, Any]) -> None:
        self.lines.write({"iteration": iteration, **numbers})

    def sync(self) -> None:
        self.lines.sync()

    def close(self) -> None:
        self.lines.close()


class TensorBoardWriter:
    """TensorBoard's event files; what an earlier part of the run wrote from `start` on is not shown."""

    def __init__(self, folder: Path, start: int) -> None:
        self.board = SummaryWriter(str(folder), purge_step=start)

    def write(self, iteration: int, numbers: Mapping[str, Any]) -> None:
        for name, number in scalars(numbers).items():
            self.board.add_scalar(name, number, iteration)

    def sync(self) -> None:
        self.board.flush()

    def close(self) -> None:
        self.board.close()


class WandbWriter:
    """A run of Weights & Biases that a resumed run goes on with (its id is in wandb_id.txt)."""

    def __init__(self, folder: Path, project: str, cfg: CfgNode) -> None:
        import wandb

        id_file = folder / "wandb_id.txt"
        known = id_file.read_text().strip() if id_file.exists() else secrets.token_hex(4)
        id_file.write_text(known)
        self.run = wandb.init(project=project, id=known, resume="allow", dir=str(folder), config=cfg)

    def write(self, iteration: int, numbers: Mapping[str, Any]) -> None:
        self.run.log(scalars(numbers), step=iteration)

    def sync(self) -> None:
        """It sends its rows by itself."""

    def close(self) -> None:
        self.run.finish()


def scalars(numbers: Mapping[str, Any]) -> dict[str, float]:
    """The entries of a row that are numbers."""
    return {name: value for name, value in numbers.items() if isinstance(value, (int, float))}


def build_writers(cfg: CfgNode, start: int) -> list[Writer]:
    """The writers of a run that goes on at iteration `start`, as cfg.LOG says; for the main process."""
    folder = Path(cfg.OUTPUT_DIR)
    writers: list[Writer] = [JsonWriter(folder, start)]
    if cfg.LOG.TENSORBOARD:
        writers.append(TensorBoardWriter(folder, start))
    if cfg.LOG.WANDB_PROJECT:
        try:
            writers.append(WandbWriter(folder, cfg.LOG.WANDB_PROJECT, cfg))
        except Exception as error:  # absent, no network, no key: no reason not to train
            reason = " ".join(str(error).split())[:200]
            logger.warning(
                "LOG.WANDB_PROJECT: no rows go to Weights & Biases (%s); `pip install wandb`, `wandb login`",
                reason,
            )
    return writers
