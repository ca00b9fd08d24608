"""The report in Chromium: nothing breaks, everything shows, controls work by keyboard, anyone can read it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from report_cases import epochs, found, make_run

from browser_cases import CONTROLS, Open, browser, grave, needs_chromium, open_page, press, wait_for_drawings
from ghmdet.report.page import write_report
from measured_data import REPO

__all__ = ["browser", "open_page"]
pytestmark = needs_chromium
ARTEFACTS = REPO / "test-artefacts"


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run that has everything."""
    folder = tmp_path_factory.mktemp("report")
    findings = found(hard=12)
    findings["unseen"] = {"count": 30, "small": 24, "median": 9.0, "size": 384, "own_size": 1000}
    findings["sizes"][1] |= {"boxes": 90, "AP": 0.2, "AP50": 0.5, "recall": 0.3}
    run = make_run(folder / "run", training=epochs(5), inspected=epochs(1), findings=findings)
    return write_report([run], say=lambda line: None)


@pytest.fixture(scope="module")
def together(run: Path, made_up: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a small real run, of one that has everything, and of one that has hardly begun."""
    folder = tmp_path_factory.mktemp("together")
    real = folder / "real"
    shutil.copytree(run, real, ignore=shutil.ignore_patterns("last.pt", "inspection"))
    bare = make_run(folder / "bare", logged=False)
    return write_report([real, made_up.parent, bare], out=folder / "report.html", say=lambda line: None)


def keep(page: Any, name: str) -> None:
    ARTEFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTEFACTS / f"report-{name}.png", full_page=True)


def unfold(page: Any) -> None:
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    wait_for_drawings(page)


def drawn(page: Any) -> list[str]:
    return page.eval_on_selector_all(".drawn path", "(all) => all.map((one) => one.getAttribute('d'))")


def test_every_figure_and_picture_shows(made_up: Path, together: Path, open_page: Open) -> None:
    for path, figures in ((made_up, 13), (together, 30)):
        page = open_page(path)
        unfold(page)
        sizes = page.eval_on_selector_all(
            "svg, .crops img",
            "(all) => all.map((one) => [one.getBoundingClientRect().width, one.getBoundingClientRect().height])",
        )
        assert len(sizes) >= figures and all(width > 50 and height > 50 for width, height in sizes)
        assert page.eval_on_selector_all(".crops img", "(all) => all.every((one) => one.naturalWidth > 0)")


def test_the_advice_shows_its_option(made_up: Path, open_page: Open) -> None:
    page = open_page(made_up, width=360)
    assert (
        page.locator(".advice li").count() == 1 and page.locator(".advice code").inner_text() == "--size 704"
    )


def test_the_slider_and_the_class_change_the_figures(made_up: Path, open_page: Open) -> None:
    page = open_page(made_up)
    slider, status = page.get_by_role("slider", name="Epoch"), page.locator(".spectrum .now")
    seen = [drawn(page)]
    assert len(seen[0]) == 3 * 2 and seen[0][0].count("H") == 30 and "Epoch 5 of 5" in status.inner_text()
    press(page, slider, "ArrowLeft")
    seen.append(drawn(page))
    assert "Epoch 4 of 5" in status.inner_text() and slider.get_attribute("aria-valuetext") == "epoch 4"
    slider.fill("0")
    seen.append(drawn(page))
    assert "Epoch 1 of 5" in status.inner_text()
    page.locator(".of").select_option(label="b")
    seen.append(drawn(page))
    assert "This class has" in status.inner_text()
    assert all(one != other for i, one in enumerate(seen) for other in seen[:i])


def test_filters_change_which_crops_show_and_the_count(made_up: Path, open_page: Open) -> None:
    page = open_page(made_up)
    shown, status = page.locator(".crops li:visible"), page.locator(".gallery .now")
    assert shown.count() == 12 and "12 of 180 shown" in status.inner_text()
    press(page, page.get_by_role("button", name="not seen"), "Enter")
    assert shown.count() == 4 and status.inner_text() == "4 of these 12 shown."
    assert set(shown.evaluate_all("(all) => all.map((one) => one.dataset.kind)")) == {"not seen"}
    assert page.get_by_role("button", name="not seen").get_attribute("aria-pressed") == "true"
    page.locator(".gallery select").select_option("b")
    assert shown.count() == 2
    assert set(shown.evaluate_all("(all) => all.map((one) => one.dataset.class)")) == {"b"}
    press(page, page.get_by_role("button", name="all", exact=True), "Space")
    assert shown.count() == 6
    assert shown.first.locator("img").get_attribute("alt")


def test_the_theme_follows_the_system_and_the_button(made_up: Path, open_page: Open) -> None:
    for scheme in ("light", "dark"):
        page = open_page(made_up, scheme=scheme)
        paper = "getComputedStyle(document.body).backgroundColor"
        before = page.evaluate(paper)
        assert (before == "rgb(22, 24, 28)") == (scheme == "dark")
        button = page.get_by_role("button", name="Dark")
        press(page, button, "Enter")
        assert page.evaluate(paper) != before
        assert button.get_attribute("aria-pressed") == str(scheme == "light").lower()
        press(page, button, "Enter")
        assert page.evaluate(paper) == before


def test_tab_reaches_every_control(made_up: Path, open_page: Open) -> None:
    page = open_page(made_up)
    wanted = page.locator(CONTROLS).count()
    reached = set()
    for _ in range(wanted + page.locator("[tabindex]").count() + 1):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(f"[...document.querySelectorAll('{CONTROLS}')].indexOf(document.activeElement)")
        )
    assert reached - {-1} == set(range(wanted))


def test_no_grave_barrier(made_up: Path, together: Path, open_page: Open) -> None:
    for path, scheme in ((made_up, "light"), (together, "light"), (together, "dark")):
        page = open_page(path, scheme=scheme)
        unfold(page)
        assert grave(page) == []
        keep(page, f"{'one' if path is made_up else 'several'}-{scheme}")


def test_a_phone_scrolls_only_downwards(made_up: Path, together: Path, open_page: Open) -> None:
    for path in (made_up, together):
        page = open_page(path, width=360)
        unfold(page)
        assert page.evaluate("document.documentElement.scrollWidth") == 360
    keep(page, "several-phone")


def test_without_script_everything_shows_and_nothing_pretends_to_work(made_up: Path, open_page: Open) -> None:
    page = open_page(made_up, script=False)
    assert page.locator("button:visible, input:visible, select:visible").count() == 0
    assert page.locator(".spectrum svg:visible").count() == 2
    assert page.locator(".crops li:visible").count() == 12


def test_print_opens_what_is_folded(made_up: Path, open_page: Open) -> None:
    page = open_page(made_up)
    ARTEFACTS.mkdir(exist_ok=True)
    page.pdf(path=ARTEFACTS / "report.pdf", format="A4", print_background=True)
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    assert page.locator("button:visible, input:visible, select:visible").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() == 2
