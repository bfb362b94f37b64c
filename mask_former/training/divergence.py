"""Steps whose costs, losses or gradients are not finite: counted, a few tolerated, then training stops.

A single bad batch need not end a run of days, and a run that has diverged must not go on for days.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from torch import Tensor, nn

from mask_former.atomic_write import replace_file
from mask_former.errors import InputError
from mask_former.matcher import NonFiniteCosts

logger = logging.getLogger(__name__)

TOLERATED = 3  # in a row
GRADIENTS_KEPT = 20  # parameters whose gradient is not finite that a report names


class DivergenceGuard:
    """Follows the steps of one process; all processes judge alike, so all stop at the same step."""

    def __init__(self, folder: str | Path | None = None) -> None:
        """`folder`: of the run; a report goes to its folder `divergence` (None: no report)."""
        self.folder = Path(folder) / "divergence" if folder is not None else None
        self.costs = NonFiniteCosts()
        self.in_a_row = 0
        self.total = 0

    def watch(self, network: nn.Module) -> None:
        """Have matching note costs that are not finite here, instead of raising."""
        matcher = getattr(getattr(network, "criterion", None), "matcher", None)
        if matcher is not None:
            matcher.tolerated = self.costs

    def begin(self) -> None:
        """A new step begins."""
        self.costs.clear()

    def judge(
        self,
        iteration: int,
        batch: Sequence[Sequence[dict[str, Any]]],
        losses: Sequence[dict[str, Tensor]],
        gradient_norm: float,
        network: nn.Module,
        finite: bool,
    ) -> None:
        """Count a step; InputError after more than TOLERATED in a row that were not finite.

        `batch`, `losses`: of this process's micro-batches. `finite`: of all processes.
        """
        if finite:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        self.total += 1
        problem = self._problem_of_all(batch, losses, gradient_norm)
        if self.in_a_row <= TOLERATED:
            logger.warning(
                "iteration %d is left out, %s (%d in a row, %d are tolerated; %d in all)",
                iteration,
                problem,
                self.in_a_row,
                TOLERATED,
                self.total,
            )
            return
        report = self._write(iteration, batch, losses, gradient_norm, network)
        raise InputError(
            f"training has diverged: {self.in_a_row} iterations in a row up to {iteration} were not finite, "
            f"{problem}; lower SOLVER.BASE_LR or use SOLVER.AMP.DTYPE bfloat16, then go on by --resume"
            + (f"; batch, losses and tensors: {report}" if report else "")
        )

    def _problem_of_all(
        self,
        batch: Sequence[Sequence[dict[str, Any]]],
        losses: Sequence[dict[str, Tensor]],
        gradient_norm: float,
    ) -> str:
        """What was not finite on which images, from all processes, which are here together."""
        mine = (self._problem(losses), [image for samples in image_ids(batch) for image in samples])
        problems = comm.all_gather(mine)
        said = [f"{problem} on images {', '.join(images)}" for problem, images in problems if problem]
        if said:
            return "; ".join(said)
        together = [image for _, images in problems for image in images]
        return f"the gradient's norm is {gradient_norm} on images {', '.join(together)}"

    def _problem(self, losses: Sequence[dict[str, Tensor]]) -> str:
        """What was not finite in this process; "" for its gradient alone, which is that of all."""
        names = sorted({name for part in losses for name, loss in part.items() if not loss.isfinite()})
        if self.costs.count:
            return f"{self.costs.count} cost matrices of the matching and losses {', '.join(names) or 'none'}"
        return f"losses {', '.join(names)}" if names else ""

    def _write(
        self,
        iteration: int,
        batch: Sequence[Sequence[dict[str, Any]]],
        losses: Sequence[dict[str, Tensor]],
        gradient_norm: float,
        network: nn.Module,
    ) -> Path | None:
        """The report, for torch.load; None without a folder."""
        if self.folder is None:
            return None
        gradients = {
            name: parameter.grad.cpu()
            for name, parameter in network.named_parameters()
            if parameter.grad is not None and not parameter.grad.isfinite().all()
        }
        report = {
            "iteration": iteration,
            "image_ids": image_ids(batch),
            "file_names": [[str(sample.get("file_name")) for sample in samples] for samples in batch],
            "images": [[sample["image"] for sample in samples] for samples in batch],
            "losses": [{name: loss.item() for name, loss in part.items()} for part in losses],
            "gradient_norm": gradient_norm,
            "matching": self.costs.first,
            "gradients_not_finite": list(gradients),
            "gradients": dict(list(gradients.items())[:GRADIENTS_KEPT]),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"iteration_{iteration:07d}_process_{comm.get_rank()}.pth"
        with replace_file(path) as file:
            torch.save(report, file)
        return path

    def state_dict(self) -> dict[str, int]:
        return {"in_a_row": self.in_a_row, "total": self.total}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.in_a_row, self.total = state["in_a_row"], state["total"]


def image_ids(batch: Sequence[Sequence[dict[str, Any]]]) -> list[list[str]]:
    """Those of every micro-batch."""
    return [[str(sample.get("image_id")) for sample in samples] for samples in batch]
