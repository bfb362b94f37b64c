"""Toy scenes: rendered panoptic images in which some classes can only be told by context.

A hull on water is a boat and the same hull on a road is a cart; a disc with an equal twin elsewhere in the
picture is a wheel and a disc without one is a ball. All else is told by its looks. See docs/toy_scenes.md.

classes.py    the categories and the ambiguous pairs, in a coarse and a fine vocabulary
sprites.py    how things look (numpy and OpenCV)
surfaces.py   how the background is laid out and textured
story.py      which things appear, drawn before and apart from where they stand
stage.py      where they stand, and who hides whom
scene.py      light, segments: `render_scene`
writer.py     COCO panoptic files: `write_toy_scenes`
"""

from mask_former.data.toy_scenes.classes import COARSE, FINE, AmbiguousPair, Vocabulary
from mask_former.data.toy_scenes.scene import Scene, Segment, render_scene
from mask_former.data.toy_scenes.sprites import Look
from mask_former.data.toy_scenes.story import GENRES
from mask_former.data.toy_scenes.writer import write_toy_scenes

__all__ = [
    "COARSE",
    "FINE",
    "GENRES",
    "AmbiguousPair",
    "Look",
    "Scene",
    "Segment",
    "Vocabulary",
    "render_scene",
    "write_toy_scenes",
]
