"""Puts the repository's root on sys.path in place of this folder: scripts here begin with `import _root`.

This folder goes to the end: a spawned process gets this path and runs the script's imports again.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

if sys.path and Path(sys.path[0] or ".").resolve() == ROOT / "slurm":
    sys.path[:] = [str(ROOT), *sys.path[1:], str(ROOT / "slurm")]
elif str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
