"""Panoptic predictions in COCO's format: a folder of PNGs and a JSON, as panopticapi reads them.

H×W the image. Categories leave with their data set's own ids; areas and boxes are measured on the map
written.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.catalog import Metadata

from mask_former.data.catalog import dataset_ids, thing_ids
from mask_former.data.id_map import measure_segments, write_id_map
from mask_former.evaluation.metrics_file import write_json

PNG_FOLDER = "panoptic"
JSON_FILE = "panoptic.json"


class PanopticWriter:
    """Writes FOLDER/panoptic/NAME.png image by image, and FOLDER/panoptic.json at the end.

    Several processes may each write their images; one of them, given all annotations, finishes.
    """

    def __init__(self, folder: str | Path, metadata: Metadata) -> None:
        """`metadata`: classes of the data set, by which contiguous ids become its own."""
        self.folder = Path(folder)
        self.dataset_id = dataset_ids(metadata)
        self.categories = coco_categories(metadata)
        (self.folder / PNG_FOLDER).mkdir(parents=True, exist_ok=True)

    def write(
        self, name: str, image_id: int | str, ids: np.ndarray, segments: Iterable[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Write one H×W id map as NAME.png; returns its entry for `finish`.

        `segments`: {"id", contiguous "category_id", optional "score"}, each with pixels in the map.
        """
        file_name = f"{name}.png"
        write_id_map(self.folder / PNG_FOLDER / file_name, ids)
        measured = measure_segments(ids)
        entries = []
        for segment in segments:
            area, box = measured[segment["id"]]
            entry = {
                "id": segment["id"],
                "category_id": self.dataset_id[segment["category_id"]],
                "iscrowd": 0,
                "area": area,
                "bbox": box,
            }
            if "score" in segment:
                entry["score"] = float(segment["score"])
            entries.append(entry)
        return {"image_id": image_id, "file_name": file_name, "segments_info": entries}

    def finish(self, annotations: Sequence[Mapping[str, Any]], images: Sequence[Mapping[str, Any]]) -> Path:
        """Write the JSON and return its path.

        `annotations` are those `write` returned, `images` have id, file_name, height and width.
        """
        path = self.folder / JSON_FILE
        content = {"images": images, "annotations": annotations, "categories": self.categories}
        write_json(content, path, indent=None)
        return path


def coco_categories(metadata: Metadata) -> list[dict[str, Any]]:
    """Every class as COCO's panoptic JSON lists it: {"id" (the data set's), "name", "isthing", "color"}."""
    things = set(thing_ids(metadata))
    colors = metadata.get("stuff_colors", None)
    categories = []
    for index, dataset_id in dataset_ids(metadata).items():
        category = {"id": dataset_id, "name": metadata.stuff_classes[index], "isthing": int(index in things)}
        if colors:
            category["color"] = [int(channel) for channel in colors[index]]
        categories.append(category)
    return categories


def unique_names(paths: Sequence[str | Path]) -> list[str]:
    """A file name without suffix for every path, none twice (also where upper and lower case are one).

    The path's own stem where that is enough; with its suffix (`a_png`) beside a file that differs in it
    alone; with folders in front (`left__a`) where files of other folders share the name; at last with a
    number.
    """
    files = [Path(path) for path in paths]
    siblings = Counter(str(path.with_suffix("")).casefold() for path in files)
    own = [
        path.stem if siblings[str(path.with_suffix("")).casefold()] == 1 else path.name.replace(".", "_")
        for path in files
    ]
    names = own
    for level in range(1, max((len(path.parts) for path in files), default=0) + 1):
        count = Counter(name.casefold() for name in names)
        if len(count) == len(names):
            break
        names = [
            name if count[name.casefold()] == 1 else "__".join([*_last_folders(path, level), stem])
            for name, path, stem in zip(names, files, own, strict=True)
        ]
    return _numbered(names)


def _last_folders(path: Path, number: int) -> list[str]:
    folders = [part for part in path.parts[:-1] if part not in (path.anchor, "..")]
    return folders[-number:]


def _numbered(names: Sequence[str]) -> list[str]:
    taken: set[str] = set()
    result = []
    for name in names:
        candidate, number = name, 1
        while candidate.casefold() in taken:
            number += 1
            candidate = f"{name}_{number}"
        taken.add(candidate.casefold())
        result.append(candidate)
    return result
