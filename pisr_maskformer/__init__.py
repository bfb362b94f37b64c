"""PISR: Panoptic, Instance, and Semantic Relations (CVPR 2022), for any host network.

The modules here need torch alone; `pisr_maskformer.hosts` joins them to a network.
"""

from pisr_maskformer.config import PISRSettings, SettingError, add_pisr_config
from pisr_maskformer.criterion import TwoStageCriterion
from pisr_maskformer.module import PISR, PISRInternals, PISROutput

__all__ = [
    "PISR",
    "PISRInternals",
    "PISROutput",
    "PISRSettings",
    "SettingError",
    "TwoStageCriterion",
    "add_pisr_config",
]
