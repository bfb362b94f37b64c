"""Loading checkpoints into a model, with a report of what matched (files: checkpoint_reading.py)."""

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from mask_former.checkpoint_names import modernise_names, prefix_backbone_names
from mask_former.checkpoint_reading import read_checkpoint
from mask_former.errors import InputError

logger = logging.getLogger(__name__)

BACKBONE = "backbone."
# what an ImageNet checkpoint holds beside the backbone, and counters that frozen norms do not have
CLASSIFIER = re.compile(r"\.(fc|classifier|head|linear)\d*\.|num_batches_tracked$")


@dataclass(frozen=True)
class LoadReport:
    """Which entries of a checkpoint reached the model; names as the model calls them."""

    path: str
    matched: list[str]
    missing: list[str]  # of the model, not in the checkpoint: they keep their initial values
    unexpected: list[str]  # of the checkpoint, not in the model: not used
    # in both with different shapes: they keep initial values
    mismatched: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """One line of counts, then the names that did not match, grouped by module."""
        lines = [
            f"{self.path}: {len(self.matched)} entries matched, {len(self.missing)} missing, "
            f"{len(self.unexpected)} unexpected, {len(self.mismatched)} of another shape"
        ]
        for title in ("missing", "unexpected", "mismatched"):
            lines += [f"  {title}: {group}" for group in _grouped(getattr(self, title))]
        return "\n".join(lines)


def _grouped(names: Iterable[str], depth: int = 3) -> list[str]:
    """Names with a common beginning of `depth` parts as one row with their number."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(".".join(name.split(".")[:depth]), []).append(name)
    return [
        rows[0] if len(rows) == 1 else f"{start}.* ({len(rows)} entries)" for start, rows in groups.items()
    ]


def load_weights(
    model: nn.Module, path: str | Path, skip_mismatch: bool = False, complete: bool = False
) -> LoadReport:
    """Load the weights of a checkpoint into a model, and report (and log) what matched.

    Raises InputError when no entry has a name of the model; unless `skip_mismatch`, when an entry has another
    shape or only a part of the backbone is there: the weights belong to another architecture or number of
    classes; with `complete`, when an entry of the model (the criterion's apart) is missing, or one of the
    checkpoint is not used: then it is not this model's. The model is then unchanged.
    """
    return load_state(model, read_checkpoint(path)["model"], str(path), skip_mismatch, complete)


def load_state(
    model: nn.Module, state: dict[str, Tensor], path: str, skip_mismatch: bool = False, complete: bool = False
) -> LoadReport:
    """As `load_weights`, from tensors that came from `path`."""
    own = model.state_dict()
    state = dict(state)
    modernise_names(state)
    state = prefix_backbone_names(state, own)
    common = [name for name in state if name in own]
    mismatched = [name for name in common if state[name].shape != own[name].shape]
    if not common:
        raise InputError(
            f"{path}: none of its {len(state)} entries ({next(iter(state))}, …) is part of this model; "
            "use weights of the configured architecture"
        )
    if mismatched and not skip_mismatch:
        raise InputError(_mismatch_line(mismatched, state, own, path))
    report = LoadReport(
        path=path,
        matched=[name for name in common if name not in set(mismatched)],
        missing=[name for name in own if name not in state and not name.endswith("num_batches_tracked")],
        unexpected=[name for name in state if name not in own],
        mismatched=mismatched,
    )
    _require_fit(report, skip_mismatch, complete)
    model.load_state_dict({name: state[name] for name in report.matched}, strict=False)
    logger.log(logging.WARNING if report.unexpected or mismatched else logging.INFO, report.summary())
    return report


def _require_fit(report: LoadReport, skip_mismatch: bool, complete: bool) -> None:
    """InputError when the checkpoint is another network's, or, with `complete`, not wholly this model's."""
    if complete:
        missing = [name for name in report.missing if not name.startswith("criterion.")]
        if missing or report.unexpected:
            name = (missing or report.unexpected)[0]
            raise InputError(
                f"{report.path} is not a checkpoint of this model: {len(missing)} entries are missing and "
                f"{len(report.unexpected)} unknown ({name}, …); use a checkpoint of this configuration"
            )
    if skip_mismatch or not any(name.startswith(BACKBONE) for name in report.matched):
        return
    missing = [name for name in report.missing if name.startswith(BACKBONE)]
    unknown = [
        name for name in report.unexpected if name.startswith(BACKBONE) and not CLASSIFIER.search(name)
    ]
    if missing or unknown:
        raise InputError(
            f"{report.path} has another backbone: {len(missing)} entries of this one are missing and "
            f"{len(unknown)} unknown ({(missing or unknown)[0]}, …); use weights of the configured "
            "architecture, or MODEL.WEIGHTS_SKIP_MISMATCH True to start missing entries anew"
        )


def _mismatch_line(mismatched: list[str], state: dict[str, Tensor], own: dict[str, Tensor], path: str) -> str:
    name = mismatched[0]
    theirs, ours = tuple(state[name].shape), tuple(own[name].shape)
    others = f" and {len(mismatched) - 1} more" if len(mismatched) > 1 else ""
    classes = [
        n for n in mismatched if n.endswith(("class_embed.weight", "class_embed.bias", "empty_weight"))
    ]
    if len(classes) == len(mismatched):
        mend = f"set MODEL.SEM_SEG_HEAD.NUM_CLASSES to {state[classes[0]].shape[0] - 1}"
    else:
        mend = "use weights of the configured architecture"
    return (
        f"{path}: {name} has shape {theirs}, this model's has {ours}{others}; {mend}, "
        "or MODEL.WEIGHTS_SKIP_MISMATCH True to start these entries anew"
    )
