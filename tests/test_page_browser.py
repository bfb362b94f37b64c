"""The page in a real browser: opened from disk, worked by mouse and keyboard, wide, narrow and dark."""

import os

import numpy as np
import pytest
from PIL import Image

from pisr_maskformer.visualization.curves import Curve
from pisr_maskformer.visualization.page import Page, Table, render
from tests.chromium import chromium, require_chromium

pytestmark = pytest.mark.browser

COUNT, PER_PAGE = 2000, 60
NASTY = "</script><img src=x onerror=\"document.title='owned'\"> 'é' 雪 \udc80" + " and so on" * 60
CLASSES = ["sky", 'cat & "dog" <b>', "road"]
SCHEMES = {"light": False, "dark": True}


def images():
    """ΔPQ falls from +10 with the index, none at the end; every tenth image has the second class."""
    return [
        {
            "index": i,
            "name": NASTY if i == 0 else f"photo {i}",
            "width": 40 if i % 3 else 30,
            "height": 30 if i % 3 else 60,
            "pq": [None, None] if i == COUNT - 1 else [40.0, 50.0 - i / 100],
            "delta": None if i == COUNT - 1 else 10 - i / 100,
            "changed": (i * 7 % 100) / 100,
            "classes": [0, 1] if i % 10 == 0 else [0, 2],
            "boxes": [[0.25, 0.25, 0.5, 0.75]],
            "heat": CLASSES[1],
            "pictures": {
                **{kind: f"images/{i} {kind} #1 50% ü.png" for kind in ("thumb_baseline", "thumb_pisr")},
                **{kind: f"images/{kind}.png" for kind in ("input", "baseline", "pisr", "before", "after")},
            },
        }
        for i in range(COUNT)
    ]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    require_chromium()
    folder = tmp_path_factory.mktemp("page with space & ü")
    (folder / "images").mkdir()
    originals = {}
    for kind in images()[0]["pictures"]:
        color = (200, 40, 40) if "baseline" in kind else (40, 90, 200)
        originals[kind] = folder / f"{kind}.png"
        Image.fromarray(np.full((30, 40, 3), color, np.uint8)).save(originals[kind])
    for image in images():
        for kind, file in image["pictures"].items():
            if not (folder / file).exists():
                os.link(originals[kind], folder / file)
    curve = Curve(list(range(0, 100, 5)), [5 - step / 30 for step in range(20)])
    table = Table(["class", "PQ", "gain"], [[NASTY, 30.0, 1.5], ["b" * 90, 20.0, -2.0]], gains=True)
    content = render(
        Page(
            title=f"Baseline and PISR {NASTY}",
            lead="a page of a test",
            sides=["baseline", "PISR"],
            classes=CLASSES,
            images=images(),
            numbers=[("Δ (PQ + mIoU + AP)", float("nan"), float("nan"), 1.5), ("PQ", 40.0, 41.0, 1.0)],
            sections={
                "Metrics": [table],
                "Configuration": [Table(["key", "a", "b"], [["K" * 80, "1", "2"]])],
            },
            charts={"loss": {"baseline": curve, "pisr": curve}},
        )
    )
    (folder / "index.html").write_bytes(content.encode())
    return folder / "index.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture
def tab(browser, page):
    browser.complaints.clear()
    browser.size(1280, 900)
    browser.open(page)
    browser.wait("document.querySelectorAll('#gallery .card').length > 0")
    yield browser
    assert browser.complaints == [], "nothing in the console, nothing that was not found"


def names(tab):
    return tab.run("[...document.querySelectorAll('#gallery .name')].map((name) => name.textContent)")


def choose(tab, control, value):
    tab.run(
        f"(() => {{ const c = document.getElementById('{control}'); c.value = '{value}';"
        " c.dispatchEvent(new Event(c.type === 'search' ? 'input' : 'change')); })()"
    )


def test_thousands_of_images_a_page_at_a_time(tab):
    assert len(names(tab)) == PER_PAGE
    assert tab.run("document.getElementById('count').textContent") == f"{COUNT} of {COUNT} images"
    assert tab.run("document.title").startswith("Baseline and PISR </script>"), "no name became code"
    assert names(tab)[0] == NASTY
    tab.run("document.getElementById('forth').click()")
    assert names(tab)[0] == f"photo {PER_PAGE}"
    assert tab.run("document.getElementById('range').textContent") == f"61–120 of {COUNT}"
    tab.run("document.getElementById('back').click()")
    assert names(tab)[1] == "photo 1" and tab.run("document.getElementById('back').disabled")


def test_pictures_are_found_and_only_those_near_are_loaded(tab):
    tab.size(390, 800, phone=True)
    tab.run("document.querySelector('#gallery .under').scrollIntoView()")
    tab.wait("document.querySelector('#gallery .under').naturalWidth === 40")
    waiting = "[...document.querySelectorAll('#gallery img')].filter((image) => !image.naturalWidth).length"
    assert tab.run(waiting) > PER_PAGE, "of two a card"


def test_the_slider_uncovers_the_baseline(tab):
    clip = "getComputedStyle(document.querySelector('#gallery .over')).clipPath"
    assert tab.run(clip) == "inset(0px 0px 0px 50%)"
    tab.run("document.querySelector('#gallery input[type=range]').focus()")
    for _ in range(3):
        tab.press("ArrowRight")
    assert tab.run(clip) == "inset(0px 0px 0px 53%)", "by keyboard"


def test_sorting(tab):
    choose(tab, "sort", "worst")
    assert names(tab)[:2] == [f"photo {COUNT - 2}", f"photo {COUNT - 3}"]
    choose(tab, "sort", "changed")
    assert tab.run("document.querySelector('#gallery .facts').textContent").endswith("99% differs")
    choose(tab, "sort", "name")
    assert names(tab)[1:4] == ["photo 1", "photo 2", "photo 3"], "numbers in names count as numbers"


def test_filters_work_together(tab):
    count = "document.getElementById('count').textContent"
    choose(tab, "class", "1")
    assert tab.run(count) == f"200 of {COUNT} images"
    assert names(tab)[1] == "photo 10"
    choose(tab, "change", "loss")
    assert tab.run(count) == f"99 of {COUNT} images"
    choose(tab, "search", "PHOTO 15")
    assert tab.run(count) == f"10 of {COUNT} images"
    choose(tab, "search", "no such name")
    assert names(tab) == [] and tab.run(count) == f"0 of {COUNT} images"
    options = tab.run("[...document.getElementById('class').options].map((option) => option.textContent)")
    assert f"{CLASSES[1]} (200)" in options


def test_both_ends_are_shown(tab):
    first = "[...document.querySelectorAll('#{} .facts b')].map((change) => change.textContent)"
    assert tab.run(first.format("gains")) == ["+10.0", "+10.0", "+10.0", "+10.0"]
    assert tab.run(first.format("losses"))[0] == "−10.0"


def test_full_size_by_keyboard(tab):
    tab.run("document.querySelector('#gallery .look').focus()")
    tab.press("ArrowRight")
    tab.press("Enter")
    title = "document.getElementById('viewer-name').textContent"
    assert tab.run("document.getElementById('viewer').open") and tab.run(title) == "photo 1"
    tab.press("ArrowRight")
    assert tab.run(title) == "photo 2"
    captions = tab.run("[...document.querySelectorAll('#viewer figcaption')].map((text) => text.textContent)")
    assert captions[0] == "input" and captions[-1] == f"semantic heatmap of “{CLASSES[1]}” after PISR"
    tab.wait("[...document.querySelectorAll('#viewer img')].every((image) => image.naturalWidth === 40)")
    for _ in range(2):
        tab.press("ArrowLeft")
    assert tab.run(title).startswith("</script>")
    tab.press("ArrowLeft")
    tab.press("Escape")
    assert not tab.run("document.getElementById('viewer').open")
    assert tab.run("document.activeElement.className") == "look", "the focus is where it was"


def test_differences_are_marked_until_that_is_switched_off(tab):
    shown = "getComputedStyle(document.querySelector('#gallery .box')).display"
    assert tab.run(shown) == "block"
    left = tab.run(
        "(() => { const box = document.querySelector('#gallery .box').getBoundingClientRect();"
        " const frame = document.querySelector('#gallery .pair').getBoundingClientRect();"
        " return (box.left - frame.left) / frame.width; })()"
    )
    assert left == pytest.approx(0.25, abs=0.01)
    tab.run("document.getElementById('boxes').click()")
    assert tab.run(shown) == "none"


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_sticks_out_and_colours_follow_the_scheme(tab, tmp_path, width, scheme):
    tab.size(width, 900, dark=SCHEMES[scheme], phone=width < 800)
    assert tab.run("document.documentElement.scrollWidth") <= width
    paper = tab.run("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(channel) for channel in paper[4:-1].split(",")) / 3
    assert (brightness < 60) if scheme == "dark" else (brightness > 200)
    with Image.open(tab.screenshot(tmp_path / f"{width}_{scheme}.png")) as picture:
        assert picture.width == width and np.asarray(picture).std() > 5
    tab.run("document.querySelector('#gallery .look').click()")
    assert tab.run("document.getElementById('viewer').scrollWidth") <= width


def test_long_names_take_little_room(tab):
    tab.run("document.getElementById('class').append(new Option('class '.repeat(60), '9'))")
    assert tab.run("document.getElementById('class').getBoundingClientRect().width") <= 352 + 1
    tab.run("document.querySelector('#gallery .look').click()")
    name = "document.getElementById('viewer-name')"
    line = float(tab.run(f"getComputedStyle({name}).lineHeight").removesuffix("px"))
    assert tab.run(f"{name}.scrollHeight") > 3 * line, "more lines than are shown"
    assert tab.run(f"{name}.getBoundingClientRect().height") == pytest.approx(2 * line, abs=2)
    assert tab.run(f"{name}.title") == NASTY, "the whole name"
