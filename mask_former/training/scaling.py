"""A recipe for another batch size: learning rate and schedule scaled to it.

With k = batch / the recipe's batch, the learning rate is multiplied by k ("linear", arXiv 1706.02677: what
detectron2 does) or √k ("sqrt", often said to suit Adam), and everything that is counted in iterations is
divided by k, so that the run sees as many images.
"""

import math
from collections.abc import Callable, Collection
from typing import Any

from detectron2.config import CfgNode

from mask_former.config_values import value_of

RULES: dict[str, Callable[[float], float]] = {"linear": lambda k: k, "sqrt": math.sqrt}
COUNTED = (
    "SOLVER.MAX_ITER",
    "SOLVER.STEPS",
    "SOLVER.WARMUP_ITERS",
    "SOLVER.CHECKPOINT_PERIOD",
    "TEST.EVAL_PERIOD",
)


def scale_to_batch(
    cfg: CfgNode, recipe_batch: int, rule: str = "linear", fixed: Collection[str] = ()
) -> list[tuple[str, Any, Any]]:
    """Scale a recipe for batches of `recipe_batch` to cfg.SOLVER.IMS_PER_BATCH, in place.

    `fixed`: keys that stay (those that a user has set). Returns the changes: key, old and new value.
    """
    k = cfg.SOLVER.IMS_PER_BATCH / recipe_batch
    new = {"SOLVER.BASE_LR": cfg.SOLVER.BASE_LR * RULES[rule](k)}
    new |= {key: _iterations(value_of(cfg, key), k) for key in COUNTED}
    changes = []
    for key, value in new.items():
        old = value_of(cfg, key)
        if key not in fixed and value != old:
            cfg.merge_from_list([key, value])
            changes.append((key, old, value))
    return changes


def _iterations(count: Any, k: float) -> Any:
    """A number of iterations, or a tuple of them, at another batch size; what is not 0 stays at least 1."""
    if isinstance(count, (list, tuple)):
        return tuple(_iterations(one, k) for one in count)
    return max(1, round(count / k)) if count > 0 else count
