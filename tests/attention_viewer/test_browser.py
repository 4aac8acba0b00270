"""The page in a browser: pointing, choosing, long and right-to-left text, notebooks."""

from typing import Any

import pytest
import torch

from attention_zoo.tasks.views.attention_record import AttentionRecord
from attention_zoo.tasks.views.attention_viewer.page import attention_page, notebook_frame
from tests.browser import assert_quiet, in_browser, look, texts
from tests.conformance.cases import mark_exhaustive

pytestmark = in_browser

RUSSIAN = ["среда", ",", "4", "марта", "<eos>"]
HEBREW = ["יום", "רביעי", ",", "4", "במרץ", "<eos>"]
NASTY = ["</script>", "&amp;", "<b>", "\"'`", "\\u003c", "a" * 60]
LAYERS, HEADS = 2, 3


def make_record(source: list[str], target: list[str]) -> AttentionRecord:
    torch.manual_seed(0)
    s, t = len(source), len(target)
    sizes = {"encoder": (s, s), "decoder": (t, t), "cross": (t, s)}
    maps = {
        role: [(3 * torch.randn(HEADS, *size)).softmax(-1) for _ in range(LAYERS)]
        for role, size in sizes.items()
    }
    maps["decoder"] = [layer.tril() for layer in maps["decoder"]]
    lines = [" ".join(tokens) for tokens in (source, target)]
    return AttentionRecord(source, target, maps, *lines, ["<bos>", *target[:-1]])


PAIR = make_record(RUSSIAN, HEBREW)
LONG = make_record(
    [f"word{index}" for index in range(200)], [f"слово{index}" for index in range(200)]
)
SIGNED = make_record(NASTY, NASTY)
SIGNED.maps["cross"][-1] -= 0.3


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pages")
    back = make_record(HEBREW, RUSSIAN)
    alone = AttentionRecord(RUSSIAN, RUSSIAN, {"decoder": PAIR.maps["encoder"]}, "среда")
    written = {
        "pair": attention_page([PAIR]),
        "several": attention_page([PAIR, back]),
        "hebrew": attention_page([back]),
        "long": attention_page([LONG]),
        "signed": attention_page([SIGNED]),
        "alone": attention_page([alone]),
        "notebook": "<!doctype html><link rel='icon' href='data:,'><p id='description'>Out[1]</p>"
        + notebook_frame(PAIR)
        + notebook_frame(back),
    }
    for name, text in written.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: (folder / f"{name}.html").as_uri() for name in written}


def open_painted(browser: Any, address: str, **how: Any) -> None:
    """As `look`; then wait, as Chromium drops what is pressed before it has painted the page."""
    look(browser, address, **how)
    frames = "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done))"
    browser.execute_async_script(frames)


def token(browser: Any, side: str, index: int) -> Any:
    selector = f".tokens[data-side={side}] li:nth-child({index + 1}) button"
    return browser.find_element("css selector", selector)


def hover(browser: Any, element: Any) -> None:
    from selenium.webdriver import ActionChains

    ActionChains(browser).move_to_element(element).perform()


def choose(browser: Any, **choices: str) -> None:
    for name, value in choices.items():
        script = f"document.querySelector('input[name={name}][value=\"{value}\"]').click()"
        browser.execute_script(script)


def strengths(browser: Any, side: str) -> list[float]:
    """Of the colour behind each token: at most 0.45, and below zero where it is that of minus."""
    script = """return [...document.querySelectorAll(`.tokens[data-side=${arguments[0]}] li`)]
        .map((x) => x.style.backgroundColor.match(/[\\d.]+/g)?.map(Number) ?? [0, 0, 0, 0])"""
    colours = browser.execute_script(script, side)
    return [opacity * (1 if blue > red else -1) / 0.45 for red, _, blue, opacity in colours]


def figures(weights: torch.Tensor, most: torch.Tensor) -> list[str]:
    return [f"{x:.3f}" if abs(x) / most >= 0.02 else "" for x in weights.tolist()]


def close(values: list[float], others: torch.Tensor) -> bool:
    return torch.allclose(torch.tensor(values), others.float(), atol=0.015)


@pytest.mark.parametrize(
    "name",
    mark_exhaustive(
        (name, "page") for name in ("several", "pair", "long", "signed", "alone", "hebrew")
    ),
)
def test_the_console_is_quiet_and_no_host_is_asked(
    browser: Any, pages: dict[str, str], name: str
) -> None:
    open_painted(browser, pages[name])
    hover(browser, token(browser, "query", 1))
    assert_quiet(browser, pages[name])


@pytest.mark.parametrize(
    "role, layer, head",
    mark_exhaustive(
        (choice, "choice")
        for choice in (
            *(("cross", 1, "mean"), ("cross", 0, "1")),
            *(("encoder", 0, "2"), ("decoder", 1, "0")),
        )
    ),
)
def test_pointing_lights_what_is_attended_to(
    browser: Any, pages: dict[str, str], role: str, layer: int, head: str
) -> None:
    open_painted(browser, pages["pair"])
    choose(browser, role=role, layer=str(layer), head=head)
    whole = PAIR.maps[role][layer]
    weights = whole.mean(0) if head == "mean" else whole[int(head)]
    queries, keys = PAIR.tokens(role)
    assert texts(browser, ".tokens[data-side=query] button") == queries
    assert texts(browser, ".tokens[data-side=key] button") == keys

    hover(browser, token(browser, "query", 3))
    assert close(strengths(browser, "key"), weights[3] / whole.max())
    assert texts(browser, ".tokens[data-side=key] .figure") == figures(weights[3], whole.max())
    greatest = keys[int(weights[3].argmax())]
    description = f"{queries[3]} attends to {greatest} {weights[3].max():.3f}"
    assert texts(browser, "#description")[0].startswith(description)

    hover(browser, token(browser, "key", 1))
    assert close(strengths(browser, "query"), weights[:, 1] / whole.max())
    assert texts(browser, "#description")[0].startswith(f"{keys[1]} is attended to by ")
    hover(browser, browser.find_element("id", "source"))
    assert not any(strengths(browser, "query") + strengths(browser, "key"))


def drawn(browser: Any) -> list[list[int]]:
    """Where the lines are: of each row of pixels of the canvas, the opacity in its middle."""
    script = """const canvas = document.getElementById("threads");
        const { data } = canvas.getContext("2d").getImageData(0, 0, 3, canvas.height);
        return Array.from({ length: canvas.height }, (_, row) => data[12 * row + 3])"""
    return browser.execute_script(script)


def test_only_the_lines_of_the_token_are_drawn(browser: Any, pages: dict[str, str]) -> None:
    open_painted(browser, pages["pair"])
    rows = {index for index, opacity in enumerate(drawn(browser)) if opacity}
    assert {row // 26 for row in rows} == set(range(len(HEBREW)))
    hover(browser, token(browser, "query", 2))
    rows = {index for index, opacity in enumerate(drawn(browser)) if opacity}
    assert {row // 26 for row in rows} == {2}


def test_a_cell_names_both_tokens_and_the_weight(browser: Any, pages: dict[str, str]) -> None:
    from selenium.webdriver import ActionChains

    open_painted(browser, pages["pair"])
    cells = browser.find_element("css selector", "#cells canvas")
    cell = cells.size["width"] / len(RUSSIAN)
    aside, down = 3.5 * cell - cells.size["width"] / 2, 1.5 * cell - cells.size["height"] / 2
    ActionChains(browser).move_to_element_with_offset(cells, int(aside), int(down)).perform()
    weight = PAIR.maps["cross"][-1].mean(0)[1, 3]
    assert texts(browser, "#description") == [f"רביעי attends to марта with {weight:.3f}"]
    assert texts(browser, ".across li.at, .down li.at") == ["марта", "רביעי"]


def pixels(browser: Any, selector: str) -> torch.Tensor:
    script = """const canvas = document.querySelector(arguments[0]);
        const { width, height } = canvas;
        const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
        return [height, width, [...data].filter((_, index) => index % 4 === 3)]"""
    height, width, values = browser.execute_script(script, selector)
    return torch.tensor(values).view(height, width) / 255


def test_the_heatmap_and_the_overview_are_the_weights(browser: Any, pages: dict[str, str]) -> None:
    open_painted(browser, pages["pair"])
    choose(browser, layer="0", head="1")
    whole = PAIR.maps["cross"][0]
    expected = whole[1] / whole.max()
    assert torch.allclose(pixels(browser, "#cells canvas"), expected, atol=1 / 255)
    thumbnail = "#overview [data-layer='0'][data-head='1'] canvas"
    assert torch.allclose(pixels(browser, thumbnail), expected, atol=1 / 255)
    assert len(texts(browser, "#overview button")) == LAYERS * (HEADS + 1)


def test_a_choice_is_kept_in_the_address(browser: Any, pages: dict[str, str]) -> None:
    open_painted(browser, pages["several"])
    browser.execute_script("document.querySelector('#overview [data-layer=\"0\"]').click()")
    choose(browser, role="encoder", head="2")
    select = "const s = document.querySelector('select'); s.value = '2';"
    browser.execute_script(select + "s.dispatchEvent(new Event('change', {bubbles: true}))")
    token(browser, "key", 4).click()
    address = browser.current_url
    assert address.endswith("#line=2&role=encoder&layer=0&head=2&key=5")
    open_painted(browser, address)
    assert texts(browser, "label:has(:checked)") == ["Encoder self-attention", "0", "2"]
    assert texts(browser, "h1") == [" ".join(HEBREW)]
    assert texts(browser, ".tokens li.at") == ["במרץ"]
    open_painted(browser, f"{pages['pair']}#role=nothing&layer=9&head=x&query=99")
    assert texts(browser, "label:has(:checked)") == ["Cross-attention", "1", "mean"]


def test_what_was_pressed_stays_until_it_is_pressed_again(
    browser: Any, pages: dict[str, str]
) -> None:
    open_painted(browser, pages["pair"])
    token(browser, "query", 2).click()
    hover(browser, browser.find_element("id", "source"))
    assert texts(browser, ".tokens li.at button") == [HEBREW[2]]
    choose(browser, layer="0")
    assert texts(browser, ".tokens li.at button") == [HEBREW[2]]
    token(browser, "query", 2).click()
    hover(browser, browser.find_element("id", "source"))
    assert texts(browser, ".tokens li.at") == []


def test_all_of_it_can_be_reached_by_keyboard(browser: Any, pages: dict[str, str]) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    def press(*keys: str) -> None:
        ActionChains(browser).send_keys(*keys).perform()

    open_painted(browser, pages["pair"])
    press(Keys.TAB, Keys.ARROW_LEFT)
    assert texts(browser, "label:has(:checked)")[0] == "Decoder self-attention"
    press(Keys.ARROW_RIGHT, Keys.TAB, Keys.ARROW_LEFT, Keys.TAB, Keys.ARROW_RIGHT)
    assert texts(browser, "label:has(:checked)") == ["Cross-attention", "0", "0"]
    press(Keys.TAB, Keys.ARROW_DOWN)
    weights = PAIR.maps["cross"][0]
    assert close(strengths(browser, "key"), weights[0, 1] / weights.max())
    press(Keys.ENTER, Keys.ARROW_RIGHT, Keys.END)
    assert texts(browser, ".tokens li.at button") == ["<eos>"]
    press(Keys.TAB)
    assert texts(browser, ".tokens li.at button") == [HEBREW[1]]
    press(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_RIGHT)
    description = f"{HEBREW[1]} attends to {RUSSIAN[1]} with {weights[0, 1, 1]:.3f}"
    assert texts(browser, "#description") == [description]
    press(Keys.ESCAPE)
    assert texts(browser, "li.at") == []


def test_weights_with_signs_are_shown_as_such(browser: Any, pages: dict[str, str]) -> None:
    open_painted(browser, pages["signed"])
    choose(browser, head="0")
    weights = SIGNED.maps["cross"][-1]
    hover(browser, token(browser, "query", 0))
    most = weights.abs().max()
    assert close(strengths(browser, "key"), weights[0, 0] / most)
    expected = [x.replace("-", "−") for x in figures(weights[0, 0], most)]
    assert texts(browser, ".tokens[data-side=key] .figure") == expected
    low, middle, high, sums = texts(browser, "#scale span")
    assert [low, middle, high] == [f"weight −{most:.3f}", "0.000", f"{most:.3f}"]
    assert sums.endswith("do not sum to 1 here, but to −0.8.")
    choose(browser, role="encoder")
    assert texts(browser, "#sums") == ["The weights of a query sum to 1."]


def test_tokens_are_shown_literally(browser: Any, pages: dict[str, str]) -> None:
    open_painted(browser, pages["signed"])
    assert texts(browser, ".tokens[data-side=key] button") == NASTY
    assert texts(browser, ".down span") == NASTY
    assert texts(browser, "h1") == [" ".join(NASTY)]


def test_a_language_model_attends_within_its_text(browser: Any, pages: dict[str, str]) -> None:
    open_painted(browser, pages["alone"])
    assert texts(browser, "label:has(:checked)") == ["Self-attention", "1", "mean"]
    assert texts(browser, ".tokens[data-side=key] button") == RUSSIAN
    assert texts(browser, "#lines ~ *, .sides span")[0] == "text tokens (queries)"


@pytest.mark.parametrize("width", [1280, 390])
def test_two_hundred_tokens_scroll_within_the_view(
    browser: Any, pages: dict[str, str], width: int
) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    open_painted(browser, pages["long"], width=width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    for scroll in ("#lines", "#heat"):
        sizes = "return [arguments[0].scrollHeight, arguments[0].offsetHeight]"
        view = browser.find_element("css selector", scroll)
        content, height = browser.execute_script(sizes, view)
        assert height <= 560 < 200 * 15 <= content
    token(browser, "query", 0).click()
    ActionChains(browser).send_keys(Keys.END).perform()
    last = token(browser, "query", 199)
    inside = """const [item, view] = [arguments[0], document.getElementById("lines")]
        .map((x) => x.getBoundingClientRect());
        return item.top >= view.top - 1 && item.bottom <= view.bottom + 1"""
    assert browser.execute_script(inside, last)
    weights = LONG.maps["cross"][-1]
    assert close(strengths(browser, "key"), weights.mean(0)[199] / weights.max())
    # The lines are drawn where one looks, on no more than one sees.
    assert len(drawn(browser)) <= 560 and any(drawn(browser))


def test_a_phone_shows_all_without_scrolling_sideways(browser: Any, pages: dict[str, str]) -> None:
    open_painted(browser, pages["several"], width=390)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    views = "return [...document.querySelectorAll('.panels section')].map((x) => x.offsetWidth)"
    assert min(browser.execute_script(views)) > 340


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_follows_the_scheme(browser: Any, pages: dict[str, str], scheme: str) -> None:
    open_painted(browser, pages["pair"], scheme=scheme)
    script = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    assert (sum(browser.execute_script(script)) > 380) is (scheme == "light")
    assert pixels(browser, "#cells canvas").max() > 0


@pytest.mark.parametrize("name, right_to_left", [("pair", False), ("hebrew", True)])
def test_an_axis_of_hebrew_begins_at_the_right(
    browser: Any, pages: dict[str, str], name: str, right_to_left: bool
) -> None:
    open_painted(browser, pages[name])
    script = """const [first, second] = document.querySelectorAll(".across li");
        return second.getBoundingClientRect().left - first.getBoundingClientRect().left"""
    assert (browser.execute_script(script) < 0) is right_to_left
    weights = (make_record(HEBREW, RUSSIAN) if right_to_left else PAIR).maps["cross"][-1]
    shown = pixels(browser, "#cells canvas")
    expected = weights.mean(0) / weights.max()
    assert torch.allclose(
        shown.flip(1) if right_to_left else shown, expected.float(), atol=1.01 / 255
    )
    hover(browser, browser.find_element("css selector", ".across li"))
    assert texts(browser, ".across li.at") == [(HEBREW if right_to_left else RUSSIAN)[0]]
    left = "return document.querySelector(arguments[0]).getBoundingClientRect().left"
    marked, label = (browser.execute_script(left, x) for x in ("#mark", ".across li"))
    assert abs(marked - label) < 2


def test_two_in_a_notebook_do_not_disturb_each_other(browser: Any, pages: dict[str, str]) -> None:
    open_painted(browser, pages["notebook"])
    frames = browser.find_elements("tag name", "iframe")
    browser.switch_to.frame(frames[1])
    choose(browser, role="encoder", layer="1")
    browser.execute_script("arguments[0].scrollIntoView()", token(browser, "query", 1))
    hover(browser, token(browser, "query", 1))
    assert texts(browser, "#description")[0].startswith(f"{HEBREW[1]} attends to ")
    browser.switch_to.default_content()
    browser.switch_to.frame(frames[0])
    assert texts(browser, "label:has(:checked)") == ["Cross-attention", "1", "mean"]
    browser.switch_to.default_content()
    assert texts(browser, "#description") == ["Out[1]"] and browser.current_url == pages["notebook"]
    fits = "return arguments[0].offsetHeight - arguments[0].contentDocument.body.scrollHeight"
    for frame in frames:
        assert 0 <= browser.execute_script(fits, frame) < 40
    assert browser.get_log("browser") == []
