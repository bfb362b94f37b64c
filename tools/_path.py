"""Puts the repository's root on sys.path: every tool begins with `import _path  # noqa: F401`.

The project is not installed, so that what runs is always the code in this folder. Python puts a script's own
folder first on its path; here the root takes that place, so that a tool's neighbours have one name,
`tools.NAME`, however it was started, and no installed package called `tools` comes before ours. The script's
folder goes to the end: a process that multiprocessing spawns gets this path and runs the script's imports
again.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def put_root_first(path: list[str], root: Path) -> None:
    """Put `root` on `path` (sys.path): first where root/tools was that, which then is last."""
    first = Path(path[0]).resolve() if path and path[0] else Path.cwd()
    if first == root / "tools":
        path[:] = [str(root), *path[1:], str(root / "tools")]
    elif str(root) not in path:
        path.insert(0, str(root))


put_root_first(sys.path, ROOT)
