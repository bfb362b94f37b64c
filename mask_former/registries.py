"""Registries through which a configuration chooses parts that another package may supply.

`mask_former` fills them with its own parts and never imports the packages that add more.
"""

from typing import Any

from fvcore.common.registry import Registry

from mask_former.errors import InputError

PREDICTOR_REGISTRY = Registry("PREDICTOR")
PREDICTOR_REGISTRY.__doc__ = """
Query decoders: called as `predictor(cfg, in_channels)`; `forward` as documented at
`mask_former.predictor.TransformerPredictor`. Chosen by `MODEL.MASK_FORMER.PREDICTOR_NAME`.
"""

CRITERION_REGISTRY = Registry("CRITERION")
CRITERION_REGISTRY.__doc__ = """
Training losses: called as `criterion(cfg)`; `forward` and `weight_dict` as documented at
`mask_former.criterion.SetCriterion`. Chosen by `MODEL.MASK_FORMER.CRITERION_NAME`.
"""


def choose(registry: Registry, name: str, key: str) -> Any:
    """What is registered as `name`; if nothing is, InputError with the key and the valid names."""
    if name not in registry:
        raise InputError(f"{key}: no {name!r}; there are {', '.join(sorted(known for known, _ in registry))}")
    return registry.get(name)
