"""Where real images with labels lie, for tests that want them. They are not part of the project.

PISR_REAL_DATA names the folder; without it, a folder shared/data beside the repository is tried.
"""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
REAL_DATA = Path(os.environ.get("PISR_REAL_DATA", REPOSITORY.parent / "shared" / "data"))


def real_data(*parts: str) -> Path:
    """A file or folder of the real data; the test is skipped where it is not there."""
    path = REAL_DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs real data ({'/'.join(parts)}); set PISR_REAL_DATA to its folder")
    return path
