"""t-SNE of encodings: deterministic by seed, groups stay groups, few points are refused."""

import numpy as np
import pytest

from pisr_maskformer.visualization.projection import LEGEND, MARKERS, Points, plain, project, scatter
from tools.views.look import figure_pixels


def two_groups(count=20, channels=16):
    rng = np.random.default_rng(0)
    return np.concatenate([rng.normal(centre, 0.1, (count, channels)) for centre in (0, 3)])


def test_the_same_seed_gives_the_same_plane_and_groups_stay_apart():
    encodings = two_groups()
    first, again = project(encodings, seed=3), project(encodings, seed=3)
    assert np.array_equal(first, again)
    assert first.shape == (40, 2) and np.isfinite(first).all()
    centres = first[:20].mean(axis=0), first[20:].mean(axis=0)
    spread = max(
        np.linalg.norm(part - centre, axis=1).max()
        for part, centre in zip((first[:20], first[20:]), centres, strict=True)
    )
    assert np.linalg.norm(centres[0] - centres[1]) > spread


def test_four_points_are_enough_and_three_are_not():
    assert project(two_groups(2)).shape == (4, 2)
    with pytest.raises(ValueError, match="3 encodings are too few"):
        project(two_groups(2)[:3])


def test_equal_encodings_have_a_plane_too():
    assert np.isfinite(project(np.ones((6, 8)))).all()


@pytest.mark.parametrize("classes", [133, 150])
def test_many_classes_in_one_figure(classes):
    kinds = ["semantic", "instance"] * classes
    points = Points(np.zeros((2 * classes, 4)), kinds, [c for c in range(classes) for _ in range(2)])
    names = [f"_{c} $\\alpha$ “é” \udc80" for c in range(classes)]
    plane = np.random.default_rng(0).normal(size=(2 * classes, 2))
    figure = scatter(plane, points, names, [[c, 255 - c, 90] for c in range(classes)], "title")
    pixels = figure_pixels(figure)
    assert pixels.ndim == 3 and pixels.std() > 10
    legend = figure.axes[0].get_legend()
    assert len(legend.get_texts()) == LEGEND + len(MARKERS)
    assert legend.get_title().get_text() == f"and {classes - LEGEND} classes more"


def test_markers_tell_the_kind_and_colours_the_class():
    points = Points(np.zeros((3, 4)), ["semantic", "instance", "instance"], [0, 0, 1])
    figure = scatter(np.eye(3)[:, :2], points, ["a", "b"], [[255, 0, 0], [0, 0, 255]], "t")
    semantic, instance = figure.axes[0].collections
    assert semantic.get_offsets().tolist() == [[1, 0]]
    assert instance.get_facecolors()[:, :3].tolist() == [[1, 0, 0], [0, 0, 1]]
    assert not np.array_equal(semantic.get_paths()[0].vertices, instance.get_paths()[0].vertices)


def test_text_that_matplotlib_would_take_for_something_else():
    assert plain("_private $x$\n\udc80") == r" _private \$x\$ ?"
