"""Checkpoints of a run: written whole or not at all, found again whole, the oldest removed.

    model_0004999.pth   after iteration 4999; the last SOLVER.KEEP_CHECKPOINTS of them stay
    model_final.pth     after the last iteration
    model_best.pth      the best evaluation so far (TEST.BEST_METRIC)
    last_checkpoint     the name of the one that --resume starts from

A file appears under its name when all of it is on the disk. Should the last one be damaged all the same, the
one before is taken, with a warning.
"""

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from mask_former.atomic_write import remove_leftovers, replace_file
from mask_former.checkpoint import LoadReport, load_state
from mask_former.checkpoint_reading import local_path, read_checkpoint
from mask_former.errors import InputError, is_disk_full
from mask_former.training.lease import nothing_to_lose

logger = logging.getLogger(__name__)

PERIODIC = re.compile(r"model_(\d{7,})\.pth")
FINAL, BEST = "model_final", "model_best"


class Checkpointer(DetectionCheckpointer):
    """detectron2's checkpointer, with this project's way of reading, matching names, and writing.

    `report` is the LoadReport of the last load. With `complete`, and always when it resumes, a checkpoint
    must hold the whole model.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        skip_mismatch: bool = False,
        complete: bool = False,
        keep: int = 0,
        fence: Callable[[], None] = nothing_to_lose,
        **checkpointables: Any,
    ) -> None:
        """`keep`: how many periodic checkpoints stay, 0 for all. `fence`: raises when this process must write
        no more.
        """
        super().__init__(model, save_dir, **checkpointables)
        self.folder = Path(save_dir)
        self.skip_mismatch = skip_mismatch
        self.complete = complete
        self.keep = keep
        self.fence = fence
        self.report: LoadReport | None = None

    def save(self, name: str, **more: Any) -> None:
        """Write NAME.pth with the model, the checkpointables and `more`, and let --resume start from it.

        The best checkpoint does not become the one to resume from. InputError, with all former checkpoints as
        they were, when it cannot be written.
        """
        content = {"model": self.model.state_dict()}
        content |= {key: checkpointable.state_dict() for key, checkpointable in self.checkpointables.items()}
        content |= more
        path = self.folder / f"{name}.pth"
        try:
            with replace_file(path, durable=True) as file:
                torch.save(content, file)
                self._fence_at_the_end(file)
            if name != BEST:
                self.tag_last_checkpoint(path.name)
        except (OSError, RuntimeError) as error:  # PyTorch's writer wraps what the disk says
            raise InputError(_why_unwritten(path, error)) from error
        logger.info("saved %s", path)
        if PERIODIC.fullmatch(path.name):
            self._remove_old(path)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with replace_file(self.folder / "last_checkpoint", durable=True) as file:
            file.write(last_filename_basename.encode())
            self._fence_at_the_end(file)

    def _fence_at_the_end(self, file: BinaryIO) -> None:
        """Just before a file appears under its name: bringing it to the disk may take long."""
        file.flush()
        os.fsync(file.fileno())
        self.fence()

    def _remove_old(self, newest: Path) -> None:
        """Keep `keep` periodic checkpoints up to the newest one; later ones are another run's, and stay."""
        earlier = [path for path in self.periodic() if iteration_of(path) <= iteration_of(newest)]
        for path in earlier[: -self.keep] if self.keep else []:
            path.unlink(missing_ok=True)

    def periodic(self) -> list[Path]:
        """The periodic checkpoints of the folder by ascending iteration."""
        files = [path for path in self.folder.glob("model_*.pth") if PERIODIC.fullmatch(path.name)]
        return sorted(files, key=iteration_of)

    def candidates(self) -> list[Path]:
        """Where a resumed run may start: the tagged checkpoint, then those before it, newest first.

        Later ones than the tagged one are another run's; without a tag, all are candidates.
        """
        tag, final = self.folder / "last_checkpoint", self.folder / f"{FINAL}.pth"
        name = tag.read_text(errors="replace").strip() if tag.exists() else ""
        files = self.periodic() + ([final] if final.is_file() else [])
        iterations = {path: iteration_of(path) for path in files}
        tagged = self.folder / name
        last = iterations.get(tagged, iteration_of(tagged))
        if last >= 0:
            files = [path for path in files if iterations[path] <= last]
        files.sort(key=lambda path: (path == tagged, iterations[path]), reverse=True)
        return files

    def has_checkpoint(self) -> bool:
        return bool(self.candidates())

    def get_checkpoint_file(self) -> str:
        """The newest whole checkpoint to resume from, "" when the folder has none at all.

        InputError when there are some, but none is whole.
        """
        candidates = self.candidates()
        for path in candidates:
            try:
                read_checkpoint(path)  # its checksums too
            except InputError as error:
                logger.warning("%s: resuming from the checkpoint before it, if there is one", error)
            else:
                return str(path)
        if candidates:
            raise InputError(
                f"{self.folder}: none of its checkpoints can be read ({candidates[0].name}, …); restore one, "
                "or start anew with --overwrite"
            )
        return ""

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load the newest whole checkpoint, if that is wanted and there is one, else the model of `path`.

        Returns what the file holds beside the model and the checkpointables.
        """
        newest = self.get_checkpoint_file() if resume else ""
        return self.load(newest) if newest else self.load(path, checkpointables=[])

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        self._path, self._resuming = str(path), checkpointables is None  # None: detectron2's word for all
        if path:
            local_path(str(path))  # a missing file or failing download becomes one line here
        return super().load(path, checkpointables)

    def _load_file(self, filename: str) -> dict[str, Any]:
        return read_checkpoint(filename)

    def _load_model(self, checkpoint: dict[str, Any]) -> None:
        state, complete = checkpoint.pop("model"), self.complete or self._resuming
        self.report = load_state(self.model, state, self._path, self.skip_mismatch, complete)

    def remove_all(self) -> None:
        """Forget the run in this folder: its checkpoints, for a run that starts anew in its place."""
        for name in ("last_checkpoint", f"{FINAL}.pth", f"{BEST}.pth"):
            (self.folder / name).unlink(missing_ok=True)
        for path in self.periodic():
            path.unlink(missing_ok=True)

    def clean(self) -> None:
        """Remove what a killed process left of files it was writing."""
        remove_leftovers(self.folder)


def _why_unwritten(path: Path, error: Exception) -> str:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):  # PyTorch's writer hides what the disk said
        cause = cause.__context__
    unharmed = "earlier checkpoints are as they were"
    if cause is not None and is_disk_full(cause):
        return (
            f"no room for checkpoint {path}: {cause.strerror} ({_free_gigabytes(path.parent):.2f} GB free); "
            f"{unharmed}; make room, or lower SOLVER.KEEP_CHECKPOINTS, then go on by --resume"
        )
    reason = (cause.strerror if isinstance(cause, OSError) else None) or " ".join(str(error).split())[:200]
    return (
        f"cannot write checkpoint {path}: {reason}; {unharmed}; mend the folder's rights, then go on by "
        "--resume"
    )


def _free_gigabytes(folder: Path) -> float:
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize / 1e9


def iteration_of(path: Path) -> int:
    """The iteration that a checkpoint was saved after, by its name or content; -1 when neither tells."""
    named = PERIODIC.fullmatch(path.name)
    if named:
        return int(named[1])
    try:
        return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["iteration"])
    except Exception:  # missing or damaged, in whatever way: it is tried last
        return -1
