"""The page, in a browser, from disk."""

import pytest
import torch

from ropebridge.plots import Panel
from ropebridge.plots.page import write_page

EVIL = [
    "</script><script>document.title='taken'</script>",
    "<img src=x onerror=\"document.title='taken'\">",
    "&amp;",
    "'\"\\",
    "\u2028 end",
]


@pytest.fixture
def open_page(browser, tmp_path):
    """`open_page(panels, tokens, title)`: the page in the browser, with what went wrong in
    `page.errors`."""
    pages = []

    def open_(panels, tokens, title="a model"):
        write_page(panels, tokens, tmp_path / "patterns.html", title)
        page = browser.new_page(viewport={"width": 1300, "height": 900})
        page.errors, page.asked = [], []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on(
            "console",
            lambda message: page.errors.append(message.text) if message.type == "error" else None,
        )
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto((tmp_path / "patterns.html").as_uri())
        pages.append(page)
        return page

    yield open_
    for page in pages:
        page.close()


@pytest.fixture
def page(open_page, panels):
    return open_page(panels, ["the", " cat", "sat", "on", "it"])


def shown(page):
    """What is said: head, query, key, weight."""
    page.evaluate("() => new Promise(requestAnimationFrame)")
    return [page.text_content(f"#{name}") for name in ("head", "query", "key", "weight")]


def hover(page, query, key):
    box = page.locator("#view").bounding_box()
    page.mouse.move(
        box["x"] + (key + 0.5) * box["width"] / 5, box["y"] + (query + 0.5) * box["height"] / 5
    )
    return shown(page)


def test_it_opens_from_disk_asks_for_nothing_else_and_finds_no_fault(page):
    assert page.errors == []
    assert [url.partition(":")[0] for url in page.asked] == ["file"]
    assert page.title() == "a model: attention patterns"
    assert page.locator("#grid button").count() == 3


def test_pointing_says_query_key_and_weight(page):
    assert hover(page, 2, 2) == ["layer 0, head 0", "sat  (2)", "sat  (2)", "1.0000"]
    assert hover(page, 2, 1) == ["layer 0, head 0", "sat  (2)", " cat  (1)", "0.0000"]
    page.click("#grid button >> nth=2")
    assert hover(page, 3, 0) == [
        "layer 1, head 0",
        "on  (3)",
        "the  (0)",
        "0.2520",
    ], "1/4, to a byte's closeness"


def test_the_query_row_lists_its_strongest_keys(page):
    page.click("#grid button >> nth=1")
    hover(page, 4, 0)
    first = page.locator("#most tr").first.locator("td").all_text_contents()
    assert first == ["on  (3)", "1.0000"]
    assert page.locator("#most tr").count() == 5


def test_what_is_painted_is_the_pattern(page):
    """Dark on the diagonal, white elsewhere; another head is painted when it is chosen."""
    pixel = (
        "([x, y]) => Array.from(document.getElementById('view').getContext('2d').getImageData(x, y,"
        " 1, 1).data)"
    )
    assert page.evaluate(pixel, [3, 3]) == [8, 48, 107, 255]
    assert page.evaluate(pixel, [2, 3]) == [255, 255, 255, 255]
    page.click("#grid button >> nth=1")
    assert page.evaluate(pixel, [3, 3]) == [255, 255, 255, 255]
    assert page.evaluate(pixel, [2, 3]) == [8, 48, 107, 255]
    corner = (
        "document.querySelectorAll('#grid canvas')[2].getContext('2d').getImageData(4, 0, 1,"
        " 1).data.join()"
    )
    assert page.evaluate(corner) == "255,255,255,255"


def test_the_marks_lie_over_the_cell(page):
    hover(page, 1, 3)
    box, across, down = (
        page.locator(f"#{name}").bounding_box() for name in ("view", "across", "down")
    )
    assert across["y"] == pytest.approx(box["y"] + box["height"] / 5, abs=1)
    assert down["x"] == pytest.approx(box["x"] + 3 * box["width"] / 5, abs=1)
    assert down["width"] == pytest.approx(box["width"] / 5, abs=1)


def test_all_of_it_can_be_done_by_keyboard(page):
    """Tab to the heads, arrows among them, Enter chooses; Tab on to the pattern, arrows move in
    it."""
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert shown(page) == ["layer 0, head 1", "it  (4)", "the  (0)", "0.0000"]
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "view"
    page.keyboard.press("ArrowUp")
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert shown(page) == ["layer 0, head 1", "on  (3)", "sat  (2)", "1.0000"]
    page.keyboard.press("Shift+ArrowUp")
    page.keyboard.press("Home")
    assert shown(page) == ["layer 0, head 1", "the  (0)", "the  (0)", "1.0000"]
    page.keyboard.press("]")
    page.keyboard.press("]")
    assert shown(page)[0] == "layer 1, head 0"
    page.keyboard.press("[")
    assert shown(page)[0] == "layer 0, head 1"


def test_it_can_be_heard(page):
    """Roles and names for who does not see it: what is chosen, what is pressed, and a status that
    is read out."""
    assert page.get_by_role("button", name="layer 0, head 1").count() == 1
    assert page.get_by_role("button", pressed=True).count() == 1
    assert page.get_by_role("img", name="Attention pattern of layer 0, head 0").count() == 1
    assert page.locator("[role=status][aria-live=polite]").count() == 1


def test_tokens_and_titles_are_text_and_nothing_else(open_page, panels):
    page = open_page(
        panels, EVIL, title="<b>bold</b></title><script>document.title='taken'</script>"
    )
    for place, token in enumerate(EVIL):
        assert hover(page, 4, place)[2] == f"{token}  ({place})"
    assert (
        page.text_content("h1")
        == "<b>bold</b></title><script>document.title='taken'</script>: attention patterns"
    )
    assert page.locator("img, b").count() == 0
    assert "taken" not in page.title().partition("<script>")[0]
    assert page.errors == []


def test_queries_of_a_longer_past_are_named_by_their_own_tokens(open_page):
    """Two queries over five keys: the queries are the last two tokens."""
    page = open_page([Panel(0, 0, torch.eye(5)[3:])], list("abcde"))
    box = page.locator("#view").bounding_box()
    page.mouse.move(box["x"] + 1, box["y"] + 1)
    assert shown(page)[1] == "d  (3)"


def test_sixteen_heads_of_512_tokens_stay_fluid(open_page):
    """From opening to all heads painted within 3 s; a move of the pointer, and a change of head,
    within a few frames."""
    draw = torch.Generator().manual_seed(0)
    patterns = (
        (torch.randn(16, 512, 512, generator=draw) * 3)
        .masked_fill(torch.ones(512, 512).triu(1).bool(), -torch.inf)
        .softmax(-1)
    )
    page = open_page(
        [Panel(0, head, pattern) for head, pattern in enumerate(patterns)],
        [f"t{i}" for i in range(512)],
    )
    loaded = page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
    move = """() => {
        const box = view.getBoundingClientRect(), begin = performance.now();
        for (let i = 0; i < 100; i++) {
            const at = {clientX: box.left + i * 4, clientY: box.top + 300 + i};
            view.dispatchEvent(new PointerEvent('pointermove', at));
            show();
        }
        return (performance.now() - begin) / 100;
    }"""
    switch = (
        "() => { const begin = performance.now(); for (let i = 0; i < 16; i++) choose(i); return"
        " (performance.now() - begin) / 16; }"
    )
    moved, switched = page.evaluate(move), page.evaluate(switch)
    print(
        f"opened in {loaded:.0f} ms; a move takes {moved:.2f} ms, a change of head"
        f" {switched:.2f} ms"
    )
    assert loaded < 3000
    assert moved < 16
    assert switched < 100
    assert page.errors == []
