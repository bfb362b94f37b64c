"""Puts the repository's root on sys.path: every tool begins with `import _path  # noqa: F401`.

The project is not installed, so that what runs is always the code in this folder. Python puts a script's own
folder first on its path; here the root takes that place, so that a tool's neighbours have one name,
`tools.NAME`, however it was started, and no installed package called `tools` comes before ours.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def put_root_first(path: list[str], root: Path) -> None:
    """Change `path` (sys.path) so that `root` stands on it, in place of root/tools where that comes first."""
    first = Path(path[0]).resolve() if path and path[0] else Path.cwd()
    if first == root / "tools":
        path[0] = str(root)
    elif str(root) not in path:
        path.insert(0, str(root))


put_root_first(sys.path, ROOT)
