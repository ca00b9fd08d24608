"""The page of an audit in Chromium: keys, filters, what the browser keeps, the export, barriers, many items."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from browser_cases import CONTROLS, Open, browser, grave, needs_chromium, open_page, press
from ghmdet.audit import Label, Suspicion
from ghmdet.audit.command import write
from ghmdet.data import DetectionData, read_data
from measured_data import REPO
from small_sets import Picture, coco_content, draw

__all__ = ["browser", "open_page"]
pytestmark = needs_chromium
BOX, OTHER = (20.0, 20.0, 60.0, 60.0), (100.0, 100.0, 140.0, 140.0)
CAT, DOG, EMU = 0, 1, 2
FOUND = [
    Suspicion(0, "missing", None, None, Label(DOG, OTHER), 0.9, 0.9, None),
    Suspicion(0, "class", 0, Label(CAT, BOX), Label(DOG, BOX), 0.8, 0.8, 0.1),
    Suspicion(0, "shifted", 0, Label(CAT, BOX), Label(CAT, (30.0, 30.0, 70.0, 70.0)), 0.7, 0.7, 0.9),
    Suspicion(0, "spurious", 1, Label(DOG, OTHER), None, 0.6, 0.6, None),
    Suspicion(0, "duplicate", 0, Label(CAT, BOX), None, 0.5, 0.1, 0.1),
]


def made(root: Path) -> DetectionData:
    picture = Picture("<b>a & b.jpg", 200, 160, [(CAT, *BOX), (DOG, *OTHER)])
    (root / "train.json").write_text(json.dumps(coco_content([picture])))
    draw(root / picture.name, 200, 160)
    return read_data(root / "train.json")


@pytest.fixture(scope="module")
def page_of(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("audit")
    about = {"data": str(root), "judged_by": "a test", "learnt": False}
    write(root / "a", made(root), FOUND, about, 200)
    return root / "a" / "review.html"


def shown(page: Any) -> str:
    text: str = page.locator(".said").inner_text()
    return text


def test_each_kind_is_asked_about_and_drawn(page_of: Path, open_page: Open) -> None:
    page = open_page(page_of)
    wanted = [
        ("Nothing is labelled here. Add dog?", 0, 1, 2),
        ("Labelled cat. Make it dog?", 1, 0, 1),
        ("This cat is beside its object. Move the box?", 1, 1, 1),
        ("Nothing is seen here. Remove this dog?", 1, 0, 1),
        ("A second label on one object. Remove this cat?", 1, 0, 1),
    ]
    for sentence, given, suggested, _near in wanted:
        assert shown(page) == sentence
        assert page.locator(".stage rect.given").count() == given
        assert page.locator(".stage rect.suggested").count() == suggested
        assert page.locator(".stage img").evaluate("(one) => one.decode().then(() => one.naturalWidth)") > 50
        page.keyboard.press("n")
    page.keyboard.press("b")
    page.keyboard.press("ArrowLeft")
    assert shown(page) == wanted[2][0]
    # The drawing lies on the crop as the box lies in the picture.
    box = page.locator(".stage rect.given").bounding_box()
    stage = page.locator(".stage img").bounding_box()
    item = json.loads((page_of.parent / "audit.json").read_text())["items"][2]
    left, _, side = page.evaluate("items[2].window")
    scale = stage["width"] / side
    assert box["x"] - stage["x"] == pytest.approx((item["box"][0] - left) * scale, abs=3)
    assert box["width"] == pytest.approx(item["box"][2] * scale, abs=6)


def test_decisions_stay_in_the_browser_and_are_exported(page_of: Path, open_page: Open) -> None:
    page = open_page(page_of)
    for key in ("a", "r", "a", "u", "n", "A"):
        page.keyboard.press(key)
    assert "3 of 5 decided" in page.locator(".now").inner_text()
    page.reload()
    assert "3 of 5 decided" in page.locator(".now").inner_text()
    assert shown(page).startswith("This cat is beside")  # the first that is not decided
    page.get_by_role("button", name="Reject").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    assert download.value.suggested_filename == "decisions.json"
    exported = json.loads(Path(download.value.path()).read_text())
    assert exported["audit"] == json.loads((page_of.parent / "audit.json").read_text())["audit"]
    words = {one["id"]: one["decision"] for one in exported["decisions"]}
    assert words == {1: "accept", 2: "reject", 3: "reject", 4: "accept"}


def test_filters_by_kind_and_class(page_of: Path, open_page: Open) -> None:
    page = open_page(page_of)
    assert page.locator("#of option").all_inner_texts() == ["all", "cat", "dog"]
    page.locator("#of").select_option("cat")
    assert "0 of 3 decided" in page.locator(".now").inner_text()
    press(page, page.get_by_role("button", name="class 1"), "Enter")
    assert page.locator("#of").input_value() == "cat"  # it is kept where the list has it
    press(page, page.get_by_role("button", name="spurious 1"), "Enter")
    assert shown(page).startswith("Nothing is seen") and "0 of 1 decided" in page.locator(".now").inner_text()
    assert page.locator("#of option").all_inner_texts() == ["all", "dog"]
    press(page, page.get_by_role("button", name="all 5"), "Enter")
    assert "0 of 5 decided" in page.locator(".now").inner_text()


def test_a_list_of_nothing_is_said_to_be_empty(tmp_path: Path, open_page: Open) -> None:
    write(tmp_path / "a", made(tmp_path), [], {"data": "x", "judged_by": "y", "learnt": False}, 9)
    page = open_page(tmp_path / "a" / "review.html")
    assert page.locator(".review").is_hidden()
    assert page.locator(".now").inner_text() == "Nothing to review."
    page.keyboard.press("a")  # there is nothing to decide


def test_a_second_label_is_drawn_with_the_one_it_doubles(tmp_path: Path, open_page: Open) -> None:
    near, far = (22.0, 20.0, 62.0, 60.0), (30.0, 20.0, 70.0, 60.0)
    objects = [(DOG, *BOX), (CAT, *far), (CAT, *BOX), (CAT, *near)]
    (tmp_path / "train.json").write_text(json.dumps(coco_content([Picture("a.jpg", 200, 160, objects)])))
    draw(tmp_path / "a.jpg", 200, 160)
    second = Suspicion(0, "duplicate", 2, Label(CAT, BOX), None, 0.5, 0.1, 0.1)
    about = {"data": "x", "judged_by": "y", "learnt": False}
    write(tmp_path / "a", read_data(tmp_path / "train.json"), [second], about, 9)
    page = open_page(tmp_path / "a" / "review.html")
    assert shown(page) == "A second label on one object. Remove this cat and keep the dashed one?"
    for of, (x1, y1, x2, y2) in (("given", BOX), ("suggested", near)):
        (drawn,) = page.locator(f".stage rect.{of}").all()
        values = [float(drawn.get_attribute(key)) for key in ("x", "y", "width", "height")]
        assert values == [x1, y1, x2 - x1, y2 - y1]
    assert page.locator(".stage rect.near").count() == 2


def test_the_list_of_a_kind_has_labels_that_are_likelier_something_else(
    tmp_path: Path, open_page: Open
) -> None:
    found = [
        Suspicion(0, "spurious", 1, Label(DOG, OTHER), None, 0.9, 0.9, None),
        Suspicion(0, "class", 0, Label(CAT, BOX), Label(DOG, BOX), 0.6, 0.8, None),
        Suspicion(0, "spurious", 0, Label(CAT, BOX), None, 0.5, 0.8, None, False),
        Suspicion(0, "class", 1, Label(DOG, OTHER), Label(CAT, OTHER), 0.3, 0.9, None, False),
    ]
    write(tmp_path / "a", made(tmp_path), found, {"data": "x", "judged_by": "y", "learnt": False}, 9)
    page = open_page(tmp_path / "a" / "review.html")
    assert page.locator("#kinds button").all_inner_texts() == ["all 2", "spurious 2", "class 2"]
    page.keyboard.press("a")
    assert "1 of 2 decided" in page.locator(".now").inner_text() and shown(page).startswith("Labelled cat")
    page.get_by_role("button", name="class 2").click()
    page.keyboard.press("n")
    assert shown(page) == "Labelled dog. Make it cat?"
    first = "Number 1 was accepted for this object: accept one of the two."
    assert page.locator(".twin").inner_text() == first  # it is the same label
    page.get_by_role("button", name="spurious 2").click()
    assert shown(page) == "Nothing is seen here. Remove this cat?"
    assert "1 of 2 decided" in page.locator(".now").inner_text() and page.locator(".twin").inner_text() == ""


def test_no_grave_barrier_and_a_phone_scrolls_only_downwards(page_of: Path, open_page: Open) -> None:
    for scheme, width in (("light", 1280), ("dark", 1280), ("light", 360)):
        page = open_page(page_of, scheme=scheme, width=width)
        assert grave(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") == width
        folder = REPO / "test-artefacts"
        folder.mkdir(exist_ok=True)
        page.screenshot(path=folder / f"audit-{scheme}-{width}.png", full_page=True)
    wanted = page.locator(CONTROLS).count()
    reached = set()
    for _ in range(wanted + 1):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(f"[...document.querySelectorAll('{CONTROLS}')].indexOf(document.activeElement)")
        )
    assert reached - {-1} == set(range(wanted))


def test_on_a_phone_question_picture_and_buttons_are_on_one_screen(page_of: Path, open_page: Open) -> None:
    page = open_page(page_of, phone=True)
    assert grave(page) == []
    page.screenshot(path=REPO / "test-artefacts" / "audit-phone.png")
    assert page.locator("kbd:visible").count() == 0  # it has no keys
    accept = page.get_by_role("button", name="Accept")

    def tops() -> list[float]:
        """Where question, picture and buttons begin; each ends on the screen."""
        boxes = [one.bounding_box() for one in (page.locator(".said"), page.locator(".stage"), accept)]
        assert all(box["y"] >= 0 and box["y"] + box["height"] <= 844 for box in boxes)
        assert boxes[1]["y"] + boxes[1]["height"] <= boxes[2]["y"]
        return [box["y"] for box in boxes]

    before = tops()
    for _ in FOUND:
        accept.tap()
        assert tops() == before and page.evaluate("scrollY") == 0
    for scrolled in (100, 10_000):  # as far as it goes
        page.evaluate(f"scrollTo(0, {scrolled})")
        there, before = page.evaluate("scrollY"), page.locator(".stage").bounding_box()
        for key in ("Back", "Back", "Reject", "Next", "Undo"):
            page.get_by_role("button", name=key).tap()
            assert page.evaluate("scrollY") == there and page.locator(".stage").bounding_box() == before
    assert open_page(page_of).locator("kbd:visible").count() == 5
    # The last line is not hidden behind the buttons.
    assert page.locator(".note").bounding_box()["y"] + 20 < accept.bounding_box()["y"]


def test_on_a_laptop_the_picture_is_whole_and_keys_keep_it_in_view(page_of: Path, open_page: Open) -> None:
    page = open_page(page_of)
    page.set_viewport_size({"width": 1280, "height": 720})

    def whole() -> bool:
        box = page.locator(".stage").bounding_box()
        return bool(box["y"] >= 0 and box["y"] + box["height"] <= 720)

    assert whole() and page.evaluate("scrollY") == 0
    assert page.locator(".stage").bounding_box()["height"] > 400
    page.locator("#about summary").click()
    page.evaluate("scrollTo(0, 10000)")
    for key in ("n", "b", "a", "u"):
        page.keyboard.press(key)
        assert whole()


def test_buttons_say_how_many_of_a_list_are_shown(tmp_path: Path, open_page: Open) -> None:
    found = [
        Suspicion(0, "missing", None, None, Label(DOG, (x, 0, x + 9, 9)), 0.9, 0.9, None) for x in range(5)
    ]
    found.append(Suspicion(0, "spurious", 1, Label(DOG, OTHER), None, 0.6, 0.6, None))
    write(tmp_path / "a", made(tmp_path), found, {"data": "x", "judged_by": "y", "learnt": False}, 3)
    page = open_page(tmp_path / "a" / "review.html")
    buttons = page.locator("#kinds button").all_inner_texts()
    assert buttons == ["all 3 of 6", "missing 3 of 5", "spurious 1"]
    words = page.locator("#about").text_content()
    assert "first 3 of 6, the likeliest first" in words
    assert (
        "the first 5 (score 0.7 or more)" in words and "The page shows the first 3; --review 5 shows" in words
    )


def test_a_second_box_for_an_object_is_told_of(tmp_path: Path, open_page: Open) -> None:
    near, far = (102.0, 101.0, 141.0, 142.0), (150.0, 100.0, 180.0, 140.0)
    found = [
        Suspicion(0, "missing", None, None, Label(DOG, OTHER), 0.9, 0.9, None),
        Suspicion(0, "shifted", 0, Label(CAT, BOX), Label(CAT, near), 0.8, 0.8, 0.9),
        Suspicion(0, "missing", None, None, Label(DOG, far), 0.7, 0.7, None),
        Suspicion(0, "class", 1, Label(CAT, near), Label(EMU, near), 0.6, 0.6, None),
        Suspicion(0, "class", 1, Label(CAT, near), Label(DOG, near), 0.5, 0.5, None),
    ]
    write(tmp_path / "a", made(tmp_path), found, {"data": "x", "judged_by": "y", "learnt": False}, 9)
    page = open_page(tmp_path / "a" / "review.html")

    def told() -> list[str]:
        lines = []
        for _ in found:
            lines.append(page.locator(".twin").inner_text())
            page.keyboard.press("n")
        for _ in found:
            page.keyboard.press("b")
        return lines

    assert told() == [""] * 5
    page.keyboard.press("a")
    page.keyboard.press("b")
    second = "Number 1 was accepted for this object: accept one of the two."
    assert told() == ["", second, "", "", second]
    page.keyboard.press("u")
    assert told() == [""] * 5


def test_the_page_says_how_many_of_the_last_were_accepted(tmp_path: Path, open_page: Open) -> None:
    found = [
        Suspicion(0, "missing", None, None, Label(DOG, (x, 0, x + 9, 9)), 0.9, 0.9, None) for x in range(25)
    ]
    write(tmp_path / "a", made(tmp_path), found, {"data": "x", "judged_by": "y", "learnt": False}, 25)
    page = open_page(tmp_path / "a" / "review.html")
    for _ in range(19):
        page.keyboard.press("a")
    assert page.locator(".now").inner_text() == "19 of 25 decided. Number 20."
    page.keyboard.press("r")
    assert "20 of 25 decided. Of the last 20, 19 accepted. Number 21." in page.locator(".now").inner_text()
    for _ in range(5):
        page.keyboard.press("r")
    assert "25 of 25 decided. Of the last 20, 14 accepted." in page.locator(".now").inner_text()
    assert "Worth a look: the first 25 (score 0.7 or more)" in page.locator("#about").text_content()


def test_names_are_text_and_a_page_without_script_says_so(page_of: Path, open_page: Open) -> None:
    page = open_page(page_of)
    assert page.locator(".facts b").count() == 0 and "<b>a & b.jpg" in page.locator(".facts").inner_text()
    bare = open_page(page_of, script=False)
    assert "needs its script" in bare.locator("noscript").inner_text()
    assert bare.locator("button:visible").count() == 0


def test_five_thousand_items_stay_fluid_and_small(tmp_path: Path, open_page: Open) -> None:
    data, rng = made(tmp_path), np.random.default_rng(0)
    low = rng.uniform(0, 100, (5000, 2)).round(1)
    found = [
        Suspicion(0, "missing", None, None, Label(DOG, (x, y, x + 40, y + 40)), 0.5, 0.5, None)
        for x, y in low.tolist()
    ]
    write(tmp_path / "a", data, found, {"data": "x", "judged_by": "y", "learnt": False}, 5000)
    assert (tmp_path / "a" / "review.html").stat().st_size < 30e6
    assert len(list((tmp_path / "a" / "crops").iterdir())) == 5000
    with Image.open(tmp_path / "a" / "crops" / "05000.jpg") as crop:
        assert crop.size[0] == crop.size[1]
    page = open_page(tmp_path / "a" / "review.html")
    milliseconds = page.evaluate(
        """() => {
            const began = performance.now();
            const press = { key: "a", bubbles: true };
            for (let i = 0; i < 50; i++) document.body.dispatchEvent(new KeyboardEvent("keydown", press));
            return (performance.now() - began) / 50;
        }"""
    )
    assert "50 of 5000 decided" in page.locator(".now").inner_text()
    assert milliseconds < 50
