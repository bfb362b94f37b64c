"""Every setting that names a variant, with the dictionary that knows its names.

Adding a variant to one of the dictionaries makes it a valid value of the setting.
"""

from collections.abc import Mapping
from typing import Any

from pisr_maskformer.attention import RELATIONS
from pisr_maskformer.config import PISRSettings, choose
from pisr_maskformer.criterion import INITIAL_LOSS_SCOPE
from pisr_maskformer.encodings import SLOT_ORDER, SUPPRESSION
from pisr_maskformer.feedback import FEEDBACK
from pisr_maskformer.reweighting import REWEIGHTING

# Name -> whether F_pan is made of the encodings.
RELATION = {"attention": True, "constant": False}
# Name -> whether a host's inference uses the second prediction.
INFERENCE_STAGE = {"final": True, "initial": False}

# Field of PISRSettings -> its valid names.
VARIANTS: dict[str, Mapping[str, Any]] = {
    "suppression": SUPPRESSION,
    "slot_order": SLOT_ORDER,
    "reweighting": REWEIGHTING,
    "relation": RELATION,
    "f1": RELATIONS,
    "f2": RELATIONS,
    "feedback": FEEDBACK,
    "initial_loss_scope": INITIAL_LOSS_SCOPE,
    "inference_stage": INFERENCE_STAGE,
}


def check_names(settings: PISRSettings) -> None:
    """SettingError, listing the valid names, for an unknown one, be it of a part that nothing will use."""
    for setting, variants in VARIANTS.items():
        choose(variants, getattr(settings, setting), setting)
