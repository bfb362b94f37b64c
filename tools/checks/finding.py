"""One row of the doctor's table."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "none", "mend", "MISSING"]


@dataclass(frozen=True)
class Finding:
    """What was found about one thing.

    ok: as it should be. none: not there, and training works without. mend: something will not work as it is.
    MISSING: nothing can be trained without it. `mend` says what to do, in one line.
    """

    section: str
    name: str
    status: Status
    value: str
    mend: str = ""
