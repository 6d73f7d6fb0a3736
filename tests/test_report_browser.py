"""Reports in a real browser: no errors, sorting, searching, both themes, a phone's width."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_samples import dissection, edit, faces, grid

from emodissect.report import SweepPage

CHROMIUM = Path("/usr/bin/chromium")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no browser at {CHROMIUM}"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        opened = playwright.chromium.launch(executable_path=str(CHROMIUM), args=arguments)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    labels = dissection({"conv4b": 40, "lin2": 120}, faces(200))
    jobs = grid().drop(columns="chosen").assign(delta_val=np.linspace(-0.01, 0.01, 6), job=range(6))
    return {
        "dissect": labels.write(folder / "dissect.html"),
        "edit": edit(optimistic=True).write(folder / "edit.html"),
        "sweep": SweepPage(jobs).write(folder / "sweep.html"),
    }


def opened(browser: Any, path: Path, **options: Any) -> Any:
    """A loaded page whose ``problems`` lists errors of its console and network."""
    context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
    tab = context.new_page()
    tab.problems = []
    tab.on("console", lambda message: tab.problems.append(message.text))
    tab.on("pageerror", lambda error: tab.problems.append(str(error)))
    tab.on("request", lambda request: tab.problems.append(request.url) if request.url.startswith("http") else None)
    tab.goto(path.as_uri())
    tab.set_default_timeout(10_000)
    return tab


def column(tab: Any, at: int, table: str = "#rows") -> list[str]:
    return list(tab.eval_on_selector_all(f"{table} tbody td:nth-child({at})", "cells => cells.map(c => c.textContent)"))


@pytest.mark.parametrize("name", ["dissect", "edit", "sweep"])
@pytest.mark.parametrize("width", [360, 1280])
def test_a_page_loads_without_errors_and_fits_the_screen(
    browser: Any, pages: dict[str, Path], name: str, width: int
) -> None:
    tab = opened(browser, pages[name], viewport={"width": width, "height": 800})
    tab.mouse.wheel(0, 20_000)
    tab.wait_for_timeout(200)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.problems == []


def test_search_and_filters_find_neurons(browser: Any, pages: dict[str, Path]) -> None:
    tab = opened(browser, pages["dissect"])
    assert tab.inner_text("#found") == "160 neurons"
    tab.fill("#search", "lin2 TEARS")
    found = sync_api.expect(tab.locator("#found"))
    found.to_have_text("40 of 160 neurons")  # every third of 119 live ones
    assert set(tab.locator(".card h3").all_text_contents()) == {"Tears"}
    tab.fill("#search", "17")
    found.to_have_text("2 of 160 neurons")
    tab.fill("#search", "")
    tab.select_option("#show", "dead")
    found.to_have_text("2 of 160 neurons")
    sync_api.expect(tab.locator(".card").first).to_contain_text("same output for every image")  # drawn once in sight
    tab.select_option("#show", "all")
    tab.select_option("#in-layer", "0")
    found.to_have_text("40 of 160 neurons")
    assert tab.problems == []


def test_cards_come_as_one_scrolls_with_their_images_and_maps(browser: Any, pages: dict[str, Path]) -> None:
    tab = opened(browser, pages["dissect"])
    first = tab.locator(".card").count()
    assert 24 <= first < 160
    for _ in range(12):
        tab.mouse.wheel(0, 6000)
        tab.wait_for_timeout(60)
    sync_api.expect(tab.locator(".card")).to_have_count(160)
    card = tab.locator(".card").first
    assert card.locator(".im").count() == 10
    drawn = card.locator("img").first.evaluate("e => [e.src.slice(0, 15), e.naturalWidth, e.complete]")
    assert drawn == ["data:image/webp", 48, True]
    tab.fill("#search", "conv4b 3")
    sync_api.expect(tab.locator(".card")).to_have_count(1)
    assert tab.locator(".card canvas").count() == 10
    assert tab.locator(".card canvas").first.is_visible()
    tab.uncheck("#heat")
    assert not tab.locator(".card canvas").first.is_visible()
    assert tab.problems == []


def test_a_permalink_opens_one_neuron_with_all_its_answers(browser: Any, pages: dict[str, Path]) -> None:
    tab = opened(browser, pages["edit"])
    tab.goto(pages["edit"].as_uri() + "#lin2-2")
    sync_api.expect(tab.locator(".card")).to_have_count(1)
    card = tab.locator(".card")
    assert "edited: × 1.5" in card.inner_text()
    sync_api.expect(card.locator(".response .row")).to_have_count(3)  # drawn when its details open, in a later task
    assert card.locator(".response .dot").count() == 10  # its top images
    assert [row.inner_text() for row in card.locator(".effects .number").all()] == ["0.040", "0.050", "0.060"]
    assert card.locator(".profile .row").count() == 3
    others = card.locator(".like li").all_text_contents()
    assert others[0].startswith("lin2 ")
    assert others[0].endswith("1.00")
    card.locator("button.tile").first.click()
    assert tab.locator("#larger img").is_visible()
    assert "lin2-2, image 1; true:" in tab.inner_text("#larger p")
    tab.keyboard.press("Escape")
    card.locator(".like a").first.click()
    sync_api.expect(tab.locator("#found")).not_to_contain_text("lin2-2,")
    tab.click("#everything")
    sync_api.expect(tab.locator("#found")).to_have_text("36 neurons")
    assert tab.problems == []


def test_search_order_and_filter_are_in_the_address(browser: Any, pages: dict[str, Path]) -> None:
    tab = opened(browser, pages["edit"])
    tab.select_option("#show", "edited")
    sync_api.expect(tab.locator("#found")).to_have_text("4 of 36 neurons")
    tab.select_option("#order", "margin:1")
    tab.fill("#search", "tears")
    sync_api.expect(tab.locator("#found")).to_have_text("2 of 36 neurons")
    assert tab.evaluate("location.hash") == "#neurons?q=tears&show=edited&order=margin%3A1"
    again = opened(browser, pages["edit"])
    again.goto(pages["edit"].as_uri() + "#neurons?q=tears&show=edited&order=margin%3A1")
    again.reload()
    sync_api.expect(again.locator("#found")).to_have_text("2 of 36 neurons")
    assert again.input_value("#search") == "tears"
    assert again.input_value("#order") == "margin:1"
    assert tab.problems + again.problems == []


def test_a_word_is_searched_over_whole_profiles(browser: Any, pages: dict[str, Path]) -> None:
    tab = opened(browser, pages["dissect"])
    tab.fill("#search", "tears")
    tab.select_option("#in", "profile")
    sync_api.expect(tab.locator("#found")).to_have_text("158 neurons by their similarity to “Tears”")
    first = tab.locator(".card").first
    sync_api.expect(first).to_contain_text("similarity to “Tears” 1.0")
    tab.fill("#search", "no such word")
    sync_api.expect(tab.locator("#found")).to_have_text("No concept has all these words.")


def test_two_layers_and_two_runs_side_by_side(browser: Any, pages: dict[str, Path]) -> None:
    tab = opened(browser, pages["dissect"])
    tab.click("#compare summary")
    sync_api.expect(tab.locator("#beside tbody tr")).to_have_count(3)  # a details element opens in a later task
    heads = tab.locator("#beside th").all_text_contents()
    assert heads[1] == "conv4b: neurons"
    assert heads[4] == "lin2: neurons"
    tab.set_input_files("#other", str(pages["edit"]))
    sync_api.expect(tab.locator("#other-said")).to_contain_text("36 neurons.")
    assert tab.locator("#beside th").all_text_contents()[4] == "other: conv4b: neurons"
    tab.set_input_files("#other", str(pages["sweep"]))
    sync_api.expect(tab.locator("#other-said")).to_contain_text("holds no neurons")
    assert tab.problems == []


def test_pages_print_without_controls(browser: Any, pages: dict[str, Path]) -> None:
    tab = opened(browser, pages["edit"])
    tab.emulate_media(media="print")
    assert not tab.locator(".controls").first.is_visible()
    assert tab.locator(".card img").first.is_visible()
    kept = tab.eval_on_selector_all(".card", "cards => cards.map(card => getComputedStyle(card).contentVisibility)")
    assert set(kept) == {"visible"}  # else a card that was never in sight prints empty


def test_the_neuron_table_sorts_by_number_with_missing_ones_last(browser: Any, pages: dict[str, Path]) -> None:
    tab = opened(browser, pages["dissect"])
    tab.click("#as-table")
    assert not tab.locator("#cards").is_visible()
    heading = tab.locator("#rows th", has_text="similarity")
    heading.click()
    assert heading.get_attribute("aria-sort") == "descending"
    at = 1 + tab.locator("#rows th").all_text_contents().index("similarity")
    shown = [float(text) for text in column(tab, at)]
    assert shown == sorted(shown, reverse=True)
    heading.focus()
    tab.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    shown = [float(text) for text in column(tab, at)]
    assert shown == sorted(shown)
    while tab.locator("#next").is_enabled():
        tab.click("#next")
    assert column(tab, at)[-2:] == ["–", "–"]  # the dead
    assert tab.inner_text("#page") == "page 4 of 4"
    assert tab.problems == []


def test_static_tables_sort_by_value(browser: Any, pages: dict[str, Path]) -> None:
    tab = opened(browser, pages["edit"])
    table = "#grid table"
    heads = tab.locator(f"{table} th").all_text_contents()
    tab.locator(f"{table} th", has_text="change").click()
    place = 1 + heads.index("change (points)")
    changes = [float(text.replace("−", "-")) for text in column(tab, place, table)]
    assert changes == sorted(changes, reverse=True)
    assert changes[0] == 1.0


def test_light_and_dark_follow_the_system_and_the_button(browser: Any, pages: dict[str, Path]) -> None:
    script = """[getComputedStyle(document.body).backgroundColor,
                 getComputedStyle(document.querySelector('.figure svg text')).fill]"""

    def colours(tab: Any) -> list[str]:
        return list(tab.evaluate(script))

    light = opened(browser, pages["edit"], color_scheme="light")
    dark = opened(browser, pages["edit"], color_scheme="dark")
    assert colours(light)[0] == "rgb(255, 255, 255)"
    assert colours(dark)[0] != colours(light)[0]
    assert colours(dark)[1] != colours(light)[1]  # the figures' text changes with the page
    dark.click("#theme")
    assert colours(dark) == colours(light)
    dark.click("#theme")
    assert colours(dark) != colours(light)
    light.click("#theme")
    assert colours(dark) == colours(light)


def test_the_main_tables_are_there_without_scripts(browser: Any, pages: dict[str, Path]) -> None:
    tab = opened(browser, pages["edit"], java_script_enabled=False)
    assert tab.locator("#layers table").is_visible()
    assert tab.locator("#neurons noscript table, #neurons table").first.is_visible()
    assert "Scripts are off" in tab.inner_text("#neurons")
    assert not tab.locator("#explorer").is_visible()
    assert tab.locator(".warning").is_visible()
