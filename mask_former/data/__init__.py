"""The data room: registers ADE20K and IDD-Lite on import; other data sets come from the configuration."""

from mask_former.data.ade20k import register_ade20k
from mask_former.data.catalog import (
    dataset_ids,
    dataset_metadata,
    dataset_records,
    first_metadata,
    require_same_classes,
    thing_ids,
)
from mask_former.data.coco_panoptic import register_coco_panoptic, register_from_config
from mask_former.data.idd_lite import register_idd_lite
from mask_former.data.mappers import MAPPERS, build_mapper

register_ade20k()
register_idd_lite()

__all__ = [
    "MAPPERS",
    "build_mapper",
    "dataset_ids",
    "dataset_metadata",
    "dataset_records",
    "first_metadata",
    "register_coco_panoptic",
    "register_from_config",
    "require_same_classes",
    "thing_ids",
]
