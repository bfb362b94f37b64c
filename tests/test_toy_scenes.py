"""The toy scenes: what a class hangs on, and what it must not hang on."""

from collections import Counter
from functools import cache

import cv2
import numpy as np
import pytest
from scipy.stats import ks_2samp

from mask_former.data.toy_scenes import COARSE, FINE, GENRES, Scene, Segment, render_scene
from mask_former.data.toy_scenes.classes import STUFF
from mask_former.data.toy_scenes.scene import MIN_PIXELS, visible_segments
from mask_former.data.toy_scenes.sprites import Sprite
from mask_former.data.toy_scenes.stage import Actor, Layout, Stage
from mask_former.data.toy_scenes.story import TWIN_PAIR_ODDS, draw_story
from mask_former.errors import InputError

SIZE = 96
IDS = COARSE.ids
# The kind of either vocabulary's category: "boat" of "boat" and of "cabin boat".
NAMES = {
    category["id"]: category["name"].split(" ")[-1] for category in [*COARSE.categories, *FINE.categories]
}


@pytest.fixture(scope="module", params=GENRES)
def genre(request) -> str:
    return request.param


@cache
def rendered(genre: str) -> list[Scene]:
    return [render_scene(5, "train", index, SIZE, genre) for index in range(240)]


@pytest.fixture(scope="module")
def scenes(genre) -> list[Scene]:
    return rendered(genre)


def named(scene: Scene, *kinds: str) -> list[Segment]:
    return [segment for segment in scene.segments if NAMES[segment.category_id] in kinds]


def ring_around(scene: Scene, segment: Segment) -> np.ndarray:
    """bool H×W: the pixels up to 2 away from a segment."""
    mask = (scene.ids == segment.id).astype(np.uint8)
    return cv2.dilate(mask, np.ones((5, 5), np.uint8)) > mask


def hulls_with_crops(scenes: list[Scene], name: str) -> list[tuple[Scene, Segment, np.ndarray]]:
    """Hulls of one class, each with its inner pixels (n×3), without the rim that the lens blurs."""
    found = []
    for scene in scenes:
        for segment in named(scene, name):
            inner = cv2.erode((scene.ids == segment.id).astype(np.uint8), np.ones((3, 3), np.uint8))
            found.append((scene, segment, scene.image[inner > 0].astype(float)))
    return found


def test_a_scene_depends_on_its_arguments_alone():
    scene, again = render_scene(1, "train", 4, 64), render_scene(1, "train", 4, 64)
    assert scene.image.dtype == np.uint8 and scene.image.shape == (64, 64, 3)
    assert scene.ids.dtype == np.int32 and scene.ids.shape == (64, 64)
    np.testing.assert_array_equal(scene.image, again.image)
    np.testing.assert_array_equal(scene.ids, again.ids)
    assert scene.segments == again.segments
    for other in ((2, "train", 4, 64), (1, "val", 4, 64), (1, "train", 5, 64), (1, "train", 4, 64, "plain")):
        assert (render_scene(*other).image != scene.image).mean() > 0.5


@pytest.mark.parametrize(
    "arguments",
    [
        (0, "test", 0, 96),
        (-1, "val", 0, 96),
        (0, "val", -1, 96),
        (0, "val", 0, 63),
        (0, "val", 0, 96, "round"),
    ],
)
def test_impossible_scenes_are_refused(arguments):
    with pytest.raises(InputError, match="toy scenes: .*use"):
        render_scene(*arguments)


def test_every_class_appears_and_stuff_has_one_segment(scenes, genre):
    found = {segment.category_id for scene in scenes for segment in scene.segments}
    assert found == set(GENRES[genre].vocabulary.ids.values())
    for scene in scenes:
        stuff = [segment.category_id for segment in named(scene, *STUFF)]
        assert len(stuff) == len(set(stuff))
        assert {IDS["water"], IDS["road"]} <= set(stuff)  # so that neither's presence says what a hull is


def test_segments_are_those_of_the_map(scenes):
    for scene in scenes:
        values, areas = np.unique(scene.ids[scene.ids > 0], return_counts=True)
        assert {s.id: s.area for s in scene.segments} == dict(zip(values, areas, strict=True))
        assert all(segment.area >= MIN_PIXELS for segment in scene.segments)
        for segment in scene.segments:
            rows, columns = np.nonzero(scene.ids == segment.id)
            width, height = np.ptp(columns) + 1, np.ptp(rows) + 1
            assert segment.bbox == [columns.min(), rows.min(), width, height]


def test_what_hardly_shows_becomes_void():
    def block(width: int, height: int) -> Sprite:
        return Sprite(np.zeros((height, width, 3)), np.ones((height, width)), np.ones((height, width), bool))

    regions = np.full((20, 20), STUFF.index("water"), np.int32)
    regions[:3, :5] = STUFF.index("road")  # 15 pixels
    owners = regions.copy()
    owners[10:18, 10:12] = len(STUFF)  # 16 pixels
    owners[10:15, 15:18] = len(STUFF) + 1  # 15 pixels
    actors = [Actor("tree", block(2, 8), 10, 10), Actor("tree", block(3, 5), 15, 10)]
    ids, segments = visible_segments(Stage(Layout(regions, 0), actors, owners), COARSE)
    assert [(NAMES[s.category_id], s.area) for s in segments] == [("water", 400 - 15 - 16 - 15), ("tree", 16)]
    assert not ids[:3, :5].any() and not ids[10:15, 15:18].any()


def test_hulls_on_water_are_boats_and_on_roads_carts(scenes):
    surfaces = {"boat": ("water", "road"), "cart": ("road", "water")}
    for scene in scenes:
        for hull in named(scene, "boat", "cart"):
            own, other = (IDS[name] for name in surfaces[NAMES[hull.category_id]])
            category_of = {0: 0} | {s.id: s.category_id for s in scene.segments}
            around = np.array([category_of[i] for i in scene.ids[ring_around(scene, hull)]])
            assert not (around == other).any()
            assert (around == own).mean() > 0.4  # the rest is things in front of it or behind it


def test_discs_are_wheels_exactly_when_they_have_a_twin(scenes):
    for scene in scenes:
        discs = named(scene, "ball", "wheel")
        looks = Counter(disc.look for disc in discs)
        for disc in discs:
            assert (NAMES[disc.category_id] == "wheel") == (looks[disc.look] == 2)
            assert looks[disc.look] <= 2
            twins = [other.id for other in discs if other.look == disc.look and other.id != disc.id]
            assert disc.twin == (twins[0] if twins else None)


def test_twins_can_be_found_by_their_pixels(scenes):
    """Discs of one pattern have one hue if they are twins, and clearly different ones if they are not."""

    def hue(scene: Scene, disc: Segment) -> float:
        hues, saturation, _ = cv2.cvtColor(scene.image, cv2.COLOR_RGB2HSV)[scene.ids == disc.id].T
        angles = np.deg2rad(2.0 * hues[saturation > 90])
        return float(np.rad2deg(np.arctan2(np.sin(angles).mean(), np.cos(angles).mean())))

    gaps: dict[bool, list[float]] = {True: [], False: []}
    for scene in scenes:
        discs = named(scene, "ball", "wheel")
        for i, first in enumerate(discs):
            for second in discs[:i]:
                if first.look.pattern == second.look.pattern:
                    gap = abs(hue(scene, first) - hue(scene, second))
                    gaps[first.twin == second.id].append(min(gap, 360 - gap))
    assert len(gaps[True]) > 80 and len(gaps[False]) > 80
    assert max(gaps[True]) < min(gaps[False])


def test_all_discs_are_far_apart_and_show(scenes, genre):
    least = {"marked": 0.3, "plain": 0.3, "rich": 0.2}[genre]
    for scene in scenes:
        discs = named(scene, "ball", "wheel")
        centres = [np.array(d.bbox[:2]) + np.array(d.bbox[2:]) / 2 for d in discs]
        for i, first in enumerate(centres):
            assert all(np.linalg.norm(first - second) > least * SIZE for second in centres[:i])
        assert all(disc.area > 0.65 * np.pi / 4 * disc.look.size**2 for disc in discs)


def test_ambiguous_classes_are_balanced(scenes):
    counts = Counter(NAMES[segment.category_id] for scene in scenes for segment in scene.segments)
    for pair in COARSE.pairs:
        total = counts[pair.first] + counts[pair.second]
        assert total > 300
        assert abs(counts[pair.first] / total - 0.5) < 0.08


def test_the_fine_vocabulary_names_what_is_seen_and_what_is_not():
    names = {category_id: name for name, category_id in FINE.ids.items()}
    counts = Counter()
    for scene in rendered("rich"):
        for segment in named(scene, "boat", "cart", "ball", "wheel"):
            name = names[segment.category_id]
            assert name == f"{segment.look.pattern} {NAMES[segment.category_id]}"
            kind = {"boat": "cart", "cart": "boat", "ball": "wheel", "wheel": "ball"}[name.split(" ")[1]]
            assert names[segment.mistaken_for] == f"{segment.look.pattern} {kind}"
            counts[name] += 1
    assert len(FINE.pairs) == 6 and len(counts) == 12
    for pair in FINE.pairs:  # some 300 things each, so that 0.1 is more than three standard deviations
        total = counts[pair.first] + counts[pair.second]
        assert total > 200 and abs(counts[pair.first] / total - 0.5) < 0.1


def test_rich_scenes_have_more_things():
    def things(genre: str) -> float:
        scenes = [render_scene(5, "val", index, SIZE, genre) for index in range(60)]
        return sum(segment.look is not None for scene in scenes for segment in scene.segments) / len(scenes)

    assert things("rich") > 1.5 * things("plain")


def test_counting_discs_does_not_help():
    for discs, odds in TWIN_PAIR_ODDS.items():
        assert sum(odds) == 1
        assert sum(2 * pairs * chance for pairs, chance in enumerate(odds)) == discs / 2


@pytest.mark.parametrize(("genre", "share"), [("plain", 0.51), ("rich", 0.69), ("marked", 0.77)])
def test_what_counting_the_discs_of_a_pattern_tells(genre, share):
    """The shares that docs/toy_scenes.md names: only plain scenes hide all that is told without a colour."""
    rng = np.random.default_rng(0)
    counted: dict[tuple[int, int], Counter] = {}
    for _ in range(3000):
        discs = draw_story(rng, SIZE, GENRES[genre]).discs
        alike = Counter(look.pattern for _, look in discs)
        for kind, look in discs:
            counted.setdefault((len(discs), alike[look.pattern]), Counter())[kind] += 1
    best = sum(max(kinds.values()) for kinds in counted.values())
    assert abs(best / sum(kinds.total() for kinds in counted.values()) - share) < 0.02


def test_every_number_of_discs_has_odds_and_looks_enough():
    for genre in GENRES.values():
        looks = len(genre.looks.hues) * len(genre.looks.patterns)
        assert set(genre.discs) <= set(TWIN_PAIR_ODDS) and max(genre.discs) <= looks
        assert sum(genre.discs.values()) == pytest.approx(1) == pytest.approx(sum(genre.hulls.values()))


def test_water_and_road_lie_alike(scenes):
    """No place and no size is typical of one of the two."""
    measures = {"water": [], "road": []}
    for scene in scenes:
        for segment in named(scene, *measures):
            rows, columns = np.nonzero(scene.ids == segment.id)
            at_edge = (columns == 0) | (columns == SIZE - 1) | (rows == SIZE - 1)  # little for a pond
            measure = (rows.mean(), columns.mean(), segment.area, at_edge.sum())
            measures[NAMES[segment.category_id]].append(measure)
    for water, road in zip(*(np.array(m).T for m in measures.values()), strict=True):
        assert ks_2samp(water, road).pvalue > 0.01


def test_boats_and_carts_look_alike(scenes):
    boats, carts = hulls_with_crops(scenes, "boat"), hulls_with_crops(scenes, "cart")
    assert min(len(boats), len(carts)) > 140

    def measure(hulls: list) -> np.ndarray:
        return np.array(
            [
                (*inner.mean(axis=0), inner.std(), hull.look.size, hull.area, hull.bbox[2] / hull.bbox[3])
                for _, hull, inner in hulls
            ]
        ).T

    for boat, cart in zip(measure(boats), measure(carts), strict=True):
        assert ks_2samp(boat, cart).pvalue > 0.01
        shifted = boat + 0.5 * boat.std()
        assert ks_2samp(shifted, cart).pvalue < 0.01  # the comparison above could have failed
    assert (
        ks_2samp(*([h.look.pattern == "cabin" for _, h, _ in hulls] for hulls in (boats, carts))).pvalue
        > 0.01
    )


def test_balls_and_wheels_look_alike_and_lie_alike(scenes):
    def measure(name: str) -> np.ndarray:
        discs = [(scene, disc) for scene in scenes for disc in named(scene, name)]
        inside = [scene.image[scene.ids == disc.id].mean(axis=0) for scene, disc in discs]
        rest = [(d.look.size, d.area, d.bbox[0], d.bbox[1], len(d.look.pattern)) for _, d in discs]
        return np.concatenate([inside, rest], axis=1).T

    for balls, wheels in zip(measure("ball"), measure("wheel"), strict=True):
        assert ks_2samp(balls, wheels).pvalue > 0.01


def test_a_few_scenes_have_a_crowd_of_persons(scenes):
    crowds = [segment for scene in scenes for segment in scene.segments if segment.iscrowd]
    assert 0.01 < len(crowds) / len(scenes) < 0.1
    assert {NAMES[crowd.category_id] for crowd in crowds} == {"person"}
