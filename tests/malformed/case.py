"""What a malformed case is: a place of its own to spoil, a command, and what the one line must say."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tests.tiny  # noqa: F401  (registers TinyBackbone)
from tests.toy_run import CONFIG, arguments

TRAIN_JSON = "toy/annotations/panoptic_train.json"
TRAIN_PNGS = "toy/annotations/panoptic_train"


@dataclass(frozen=True)
class Place:
    """Copies that belong to one case alone."""

    data: Path  # $DETECTRON2_DATASETS: toy/ with four training and two validation scenes of 64×64 pixels
    run: Path  # OUTPUT_DIR: a run of four iterations that has lost all checkpoints after the second
    files: Path  # empty, for whatever else a case writes

    @property
    def images(self) -> list[Path]:
        return sorted((self.data / "toy/train").iterdir())

    @property
    def labels(self) -> list[Path]:
        return sorted((self.data / TRAIN_PNGS).iterdir())

    @property
    def json(self) -> Path:
        return self.data / TRAIN_JSON

    @property
    def weights(self) -> Path:
        return self.run / "model_0000001.pth"


Spoil = Callable[[Place], list[str] | None]


@dataclass(frozen=True)
class Case:
    """`spoil` breaks something and returns the command line, None for `resume`.

    `says` are parts of the line: where (with {data}, {run} and {files} for the place's folders), what, mend.
    """

    name: str
    spoil: Spoil
    says: tuple[str, ...]

    def expected(self, place: Place) -> Iterator[str]:
        for part in self.says:
            yield part.format(data=place.data, run=place.run, files=place.files)


def command(run: Path, *flags: str, config: Path = CONFIG, **overrides: Any) -> list[str]:
    """Command line of tools/train_net.py; the network is small, since every case copies its checkpoint."""
    return arguments(run, *flags, config=config, **{"MODEL__BACKBONE__NAME": "TinyBackbone", **overrides})


def resume(place: Place, **overrides: Any) -> list[str]:
    """Train two iterations more in the run's folder."""
    return command(place.run, "--resume", **overrides)


def evaluate(place: Place, **overrides: Any) -> list[str]:
    """Evaluate the run's last checkpoint."""
    return command(place.run, "--resume", "--eval-only", **overrides)


def each(paths: Callable[[Place], list[Path]], spoil: Callable[[Path], Any]) -> Spoil:
    """Spoil every one of the files: the loader takes them in any order."""

    def spoil_all(place: Place) -> None:
        for path in paths(place):
            spoil(path)

    return spoil_all
