"""Pictures side by side: sizes, titles that fit, dashed boxes."""

import numpy as np

from pisr_maskformer.visualization.panels import GAP, blank, caption, column, draw_boxes, fit, font, row


def picture(height, width, value=90):
    return np.full((height, width, 3), value, np.uint8)


def test_a_row_brings_pictures_to_one_height_in_order():
    made = row([picture(100, 50, 10), picture(50, 100, 200)], ["a", "b"])
    assert made.shape[1] == 50 + 200 + 3 * GAP
    bottom = made[-GAP - 10]
    assert bottom[GAP + 20].tolist() == [10] * 3 and bottom[2 * GAP + 50 + 100].tolist() == [200] * 3
    assert made[0, 0].tolist() == [255] * 3
    assert row([picture(100, 50)], ["a"], height=40).shape[1] == 20 + 2 * GAP


def test_titles_are_cut_in_their_middle_where_they_do_not_fit():
    face = font(12)
    assert fit("short", 500, face) == "short"
    cut = fit("photo_" + "x" * 200 + "_end.jpg", 150, face)
    assert "…" in cut and cut.startswith("ph") and cut.endswith("pg")
    assert face.getlength(cut) <= 150
    assert fit("wide", 1, face) == "…"


def test_any_text_can_be_drawn():
    for text in ('a "quoted" <name>', "naïve 雪 \udc80", "two\nlines", ""):
        assert caption(text, 300).shape[1] == 300
        assert row([picture(40, 60)], [text]).shape[1] == 60 + 2 * GAP


def test_a_column_is_as_wide_as_its_widest_row():
    made = column([picture(10, 30), picture(20, 50)], heading="both")
    assert made.shape[1] == 50
    assert made[-15, 40].tolist() == [90] * 3 and made[-25, 40].tolist() == [255] * 3


def test_boxes_are_dashed_and_the_original_is_left_alone():
    before = picture(200, 300)
    after = draw_boxes(before, [(50, 60, 150, 160)])
    assert (before == 90).all()
    changed = np.argwhere((after != 90).any(axis=2))
    assert changed.min(axis=0).tolist() == [60, 50] and changed.max(axis=0).tolist() == [159, 149]
    edge = after[61, 60:140, 0]
    assert {0, 255} <= set(edge.tolist()), "black and white in turn"
    assert (after[100, 100] == 90).all()


def test_boxes_of_any_size():
    for box in ((0, 0, 1, 1), (0, 0, 300, 200), (5, 5, 5, 5), (299, 199, 300, 200)):
        assert draw_boxes(picture(200, 300), [box]).shape == (200, 300, 3)


def test_a_blank_is_as_large_as_its_model():
    made = blank(picture(40, 70), "nothing")
    assert made.shape == (40, 70, 3) and made.min() < 200 < made.max()
