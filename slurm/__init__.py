"""Training on a Slurm cluster: `slurm/launch.py` submits, `slurm/status.py` tells how it goes."""

import sys

from slurm import _root

# The scripts begin with `import _root`, which they find beside themselves; here the same module answers.
sys.modules.setdefault("_root", _root)
