"""Command-line tools. Each runs as `python tools/NAME.py` from any folder; tests import `tools.NAME`."""

import sys

from tools import _path

# Every tool begins with `import _path`, which a script finds beside itself; here the same module answers.
sys.modules.setdefault("_path", _path)
