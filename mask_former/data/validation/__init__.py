"""Checks of a data set's files, all of them, before a training run stumbles over one.

`annotations` looks at the JSON, `images` at the files of one image, `data_sets` puts both together;
`findings` keeps what they find.
"""

from mask_former.data.validation.data_sets import (
    ClassCount,
    DataSetReport,
    validate_coco_panoptic,
    validate_registered,
)
from mask_former.data.validation.findings import Findings, Group, Problem

__all__ = [
    "ClassCount",
    "DataSetReport",
    "Findings",
    "Group",
    "Problem",
    "validate_coco_panoptic",
    "validate_registered",
]
