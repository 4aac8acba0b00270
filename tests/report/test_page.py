"""`report.html` in a browser, as its readers have it."""

from pathlib import Path
from typing import Any

import pytest

from attention_zoo.tasks.commands.report import run
from tests.browser import assert_quiet, in_browser, look, texts

pytestmark = in_browser


@pytest.fixture(scope="module")
def written(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    run([str(sweep), f"output={folder}"])
    return (folder / "report.html").as_uri()


def test_the_console_is_quiet_and_no_host_is_asked(browser: Any, written: str) -> None:
    look(browser, written)
    assert_quiet(browser, written)


def test_the_answer_comes_first_and_jobs_without_a_result_last(browser: Any, written: str) -> None:
    look(browser, written)
    assert texts(browser, "h1, h3, h2") == [
        next(iter(texts(browser, "h1"))),
        "Quality and cost",
        "Differences from gated rotary",
        "Conditions",
        "Charts",
        "Jobs without a result",
    ]
    assert texts(browser, ".summary p")[0].startswith("gated rotary has the highest BLEU")
    assert sorted(texts(browser, "main > .scroll .strong")) == [
        *("diverged", "failed", "killed", "refused")
    ]
    assert len(texts(browser, "details tbody tr")) == 29


def column(browser: Any, number: int) -> list[str]:
    return texts(browser, f"section table.sortable tbody tr > :nth-child({number})")


def test_the_table_sorts_numbers_as_numbers(browser: Any, written: str) -> None:
    look(browser, written)
    number = texts(browser, "section table.sortable thead th").index("tokens/s") + 1
    press = "document.querySelector(arguments[0]).click()"
    button = f"section table.sortable thead th:nth-child({number}) button"
    browser.execute_script(press, button)
    values = [float(text.split()[0].replace(",", "")) for text in column(browser, number)]
    # 9,846 is less than 11,118, which text would have before it.
    assert values == sorted(values) and values[0] == 9846
    sorts = "return [...document.querySelectorAll('section .sortable th')].map((x) => x.ariaSort)"
    assert [x for x in browser.execute_script(sorts) if x] == ["ascending"]
    browser.execute_script(press, button)
    assert [text.split()[0] for text in column(browser, number)] == [
        f"{x:,.0f}" for x in reversed(values)
    ]
    assert [x for x in browser.execute_script(sorts) if x] == ["descending"]


def test_the_table_sorts_by_keyboard(browser: Any, written: str) -> None:
    from selenium.webdriver.common.keys import Keys

    look(browser, written)
    button = browser.find_element("css selector", "section table.sortable thead th button")
    button.send_keys(Keys.ENTER)
    labels = column(browser, 1)
    assert labels == sorted(labels) and labels[0].startswith("delta")


def test_charts_are_there_and_a_row_is_highlighted_by_pointing(browser: Any, written: str) -> None:
    from selenium.webdriver import ActionChains

    look(browser, written)
    labels = "return [...document.querySelectorAll('figure svg')].map((x) => x.ariaLabel)"
    titles = browser.execute_script(labels)
    assert titles[:3] == ["BLEU of each seed", "Validation loss", "Training loss"]
    for cost in ("tokens/s", "peak memory", "parameters", "decode state"):
        assert f"BLEU by {cost}" in titles
    rows = [f"figure:nth-child(2) [data-row='{row}']" for row in range(9)]
    assert all(browser.find_elements("css selector", row) for row in rows)
    mark = browser.find_element("css selector", "figure:nth-child(4) .row[data-row='0'] use")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", mark)
    ActionChains(browser).move_to_element(mark).perform()
    (label,) = set(texts(browser, ".row.on > title"))
    assert label == "gated rotary"
    highlighted = "return document.querySelectorAll('figure:nth-child(2) .row.on').length"
    assert browser.execute_script(highlighted) == 2  # a curve and its band


def test_charts_follow_the_scheme(browser: Any, written: str) -> None:
    colour = "return getComputedStyle(document.querySelector('figure svg text')).fill"
    fills = []
    for scheme in ("light", "dark"):
        look(browser, written, scheme=scheme)
        fills.append(luminance(browser.execute_script(colour)))
    assert fills[0] < 0.2 < 0.3 < fills[1]


def test_a_name_in_the_legend_picks_its_row(browser: Any, written: str) -> None:
    look(browser, written)
    browser.execute_script("document.querySelectorAll('.legend button')[8].click()")
    state = "return document.querySelectorAll('.legend button')[8].ariaPressed"
    assert browser.execute_script(state) == "true"
    assert set(texts(browser, "figure .row.on > title")) == {"performer sinusoidal"}
    opacity = "return getComputedStyle(document.querySelector('figure .row:not(.on)')).opacity"
    assert float(browser.execute_script(opacity)) < 0.5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_schemes(browser: Any, written: str, scheme: str) -> None:
    look(browser, written, scheme=scheme)
    script = """
        const style = (x) => getComputedStyle(document.querySelector(x));
        return [style("body").backgroundColor, style("body").color, style(".soft").color]
    """
    page, *inks = map(luminance, browser.execute_script(script))
    assert (page > 0.5) is (scheme == "light")
    for ink in inks:
        # What the WCAG ask of text.
        assert (max(page, ink) + 0.05) / (min(page, ink) + 0.05) > 4.5


def luminance(colour: str) -> float:
    parts = [int(x) / 255 for x in colour.partition("(")[2].rstrip(")").split(",")[:3]]
    red, green, blue = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_a_phone_scrolls_tables_and_not_the_page(browser: Any, written: str) -> None:
    look(browser, written, width=390)
    assert browser.execute_script("return innerWidth") == 390
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    wide = "return [...document.querySelectorAll('.scroll')].some((x) => x.scrollWidth > 390)"
    assert browser.execute_script(wide)
    widths = "return [...document.querySelectorAll('figure')].map((x) => x.offsetWidth)"
    assert min(browser.execute_script(widths)) > 300
