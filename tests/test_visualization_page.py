"""The page as a file: nothing from data can become markup, nothing is fetched from elsewhere."""

import json
import math
import re
from html.parser import HTMLParser

import pytest

from pisr_maskformer.visualization.curves import Curve
from pisr_maskformer.visualization.markup import script_json, text
from pisr_maskformer.visualization.page import Page, Table, render, signed

NASTY = "</script><img src=x onerror=alert(1)> \"'& \u2028 \udc80 雪"


def image(index=0, **changes):
    return {
        "index": index,
        "name": f"{NASTY} {index}",
        "width": 40,
        "height": 30,
        "pq": [10.0, 12.0],
        "delta": 2.0,
        "changed": 0.25,
        "classes": [0],
        "boxes": [[0.1, 0.1, 0.5, 0.5]],
        "heat": NASTY,
        "pictures": {kind: f"images/{kind}.jpg" for kind in ("thumb_baseline", "thumb_pisr", "input")},
        **changes,
    }


def page(**changes):
    table = Table([NASTY, "gain"], [[NASTY, 1.0]], note=NASTY, gains=True, colors=[(1, 2, 3)])
    given = {
        "title": NASTY,
        "lead": NASTY,
        "sides": ["baseline", "PISR"],
        "classes": [NASTY],
        "images": [image()],
        "numbers": [(NASTY, 1.0, 2.0, 1.0)],
        "sections": {"Metrics": [table]},
        "charts": {NASTY: {"baseline": Curve([0, 1], [1.0, 2.0])}},
    }
    return render(Page(**{**given, **changes}))


class Reader(HTMLParser):
    """Elements with their attributes, and the text of the scripts."""

    def __init__(self, content):
        super().__init__()
        self.elements, self.data, self._in_data = [], "", False
        self.feed(content)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._in_data = tag == "script" and dict(attributes).get("id") == "data"

    def handle_endtag(self, tag):
        self._in_data = False

    def handle_data(self, data):
        self.data += data if self._in_data else ""


def test_data_stays_data():
    read = Reader(page())
    assert "img" not in [tag for tag, _ in read.elements]
    assert not [key for _, attributes in read.elements for key in attributes if key.startswith("on")]
    assert json.loads(read.data)["images"][0]["name"] == f"{NASTY} 0"
    assert [tag for tag, _ in read.elements].count("script") == 2


def test_nothing_is_fetched():
    content = page()
    for tag, attributes in Reader(content).elements:
        assert tag not in ("iframe", "object", "embed")
        for key in ("src", "href"):
            assert attributes.get(key, "#").startswith(("#", "data:,")), f"{tag} {attributes}"
    assert not re.search(r"url\(|@import|https?://|fetch\(|XMLHttpRequest|innerHTML", content)


def test_it_can_be_written_as_utf8():
    page().encode("utf-8")


def test_json_in_a_script_is_ascii_without_markup():
    coded = script_json([NASTY])
    assert coded.isascii() and not set("<>&") & set(coded)
    assert json.loads(coded) == [NASTY]
    with pytest.raises(ValueError):
        script_json([math.nan])


def test_text_is_escaped():
    assert text("<a href=\"x\"> 'b' & \udc80") == "&lt;a href=&quot;x&quot;&gt; &#x27;b&#x27; &amp; ?"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1.26, "+1.3"), (-2.0, "−2.0"), (0.04, "±0.0"), (-0.04, "±0.0"), (math.nan, "–")],
)
def test_gains_have_signs(value, shown):
    assert signed(value) == shown


def test_gains_are_coloured_and_unknown_numbers_are_dashes():
    table = Table(["", "gain"], [["up", 1.0], ["down", -1.0], ["same", 0.0], ["none", math.nan]], gains=True)
    content = page(sections={"Metrics": [table]})
    cells = re.findall(r'<td class="(\w+)">([^<]+)</td>', content)
    assert cells == [("gain", "+1.0"), ("loss", "−1.0"), ("same", "±0.0"), ("same", "–")]


def test_without_scores_tables_and_curves():
    bare = page(images=[image(pq=[None, None], delta=None)], numbers=[], sections={}, charts={})
    assert json.loads(Reader(bare).data)["scored"] is False
    links = [a["href"] for tag, a in Reader(bare).elements if tag == "a"]
    assert links == ["#gallery-section"]


def test_every_link_has_its_section():
    elements = Reader(page()).elements
    ids = {attributes.get("id") for _, attributes in elements}
    links = [attributes["href"][1:] for tag, attributes in elements if tag == "a"]
    assert len(links) == 3 and set(links) <= ids
