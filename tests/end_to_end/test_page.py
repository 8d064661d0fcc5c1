"""The page as people use it: in a real browser, over a real link, with the demo pair."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Error, Locator, expect

from cloud_verifier.security.keys import KeyFile
from edge_client.assistant import page as mount
from netlab.assistant_process import AssistantProcess
from netlab.link_process import LinkProcess
from netlab.link_settings import LinkSettings
from netlab.verifier_process import VerifierProcess
from tests.end_to_end.browser import ChatPage, chromium

DEMO = Path(__file__).resolve().parents[2] / "models" / "demo"
QUESTION = "Find me a hotel"
SETTINGS: dict[str, Any] = {"seed": "5", "maxTokens": 32, "temperature": 0.8}
SLOW = {**SETTINGS, "maxTokens": 160}
VERIFIER_OPTIONS = ["--threads", "1", "--step-ms", "10"]
RTT_MS = 30
MOST_BYTES = 150_000
Open = Callable[..., ChatPage]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


class Servers:
    """A verifier that may die and come back, a link to it, and an assistant."""

    def __init__(self) -> None:
        self._needs = ExitStack()
        self._verifier = VerifierProcess(DEMO / "target", options=VERIFIER_OPTIONS)
        link = LinkProcess(("127.0.0.1", self._verifier.port), LinkSettings.of_rtt(RTT_MS))
        address, drafter = f"127.0.0.1:{self._needs.enter_context(link).port}", str(DEMO / "drafter.gguf")
        running = AssistantProcess(address, drafter=drafter, options=["--offline-answers", "ask"])
        self.url = self._needs.enter_context(running).url

    @contextmanager
    def dead(self) -> Iterator[None]:
        """The verifier is killed, and at the end there is another one in its place."""
        self._verifier.kill()
        try:
            yield
        finally:
            self._verifier.stop()
            self._verifier = VerifierProcess(DEMO / "target", port=self._verifier.port, options=VERIFIER_OPTIONS)

    def stop(self) -> None:
        """Of all."""
        self._needs.close()
        self._verifier.stop()


@pytest.fixture(scope="module")
def servers(browser: Browser) -> Iterator[Servers]:
    """Asks for the browser, so that nothing is started where there is none."""
    del browser
    running = Servers()
    yield running
    running.stop()


@pytest.fixture
def opened(browser: Browser, servers: Servers) -> Iterator[Open]:
    """Opens pages; afterwards none of them may have had a fault."""
    pages: list[ChatPage] = []

    def new(settings: dict[str, Any] = SETTINGS, **context: Any) -> ChatPage:
        pages.append(ChatPage(browser, servers.url, settings, **context))
        return pages[-1]

    yield new
    for one in pages:
        one.close()


def words(servers: Servers, **more: Any) -> str:
    """What the API says to the question with the page's settings."""
    asked = {
        "messages": [{"role": "user", "content": QUESTION}],
        "seed": 5,
        "max_tokens": 32,
        "temperature": 0.8,
    } | more
    request = urllib.request.Request(f"{servers.url}/chat/completions", json.dumps(asked).encode())
    with urllib.request.urlopen(request, timeout=60) as response:
        return str(json.load(response)["choices"][0]["message"]["content"])


def test_an_answer_has_the_words_of_the_api_and_is_kept(opened: Open, servers: Servers) -> None:
    chat = opened()
    said = chat.ask(QUESTION)
    assert said == words(servers)
    assert "seed 5" in chat.page.locator("article.assistant footer").inner_text()
    chat.page.reload()
    assert chat.answered("done") == said
    assert chat.page.locator("#conversations .here .name").inner_text() == QUESTION


def test_stop_edit_and_another_answer(opened: Open) -> None:
    chat = opened(SLOW)
    chat.long_answers()
    chat.begin(QUESTION)
    chat.page.keyboard.press("Escape")
    assert chat.answered("stopped")
    chat.page.press("#question", "ArrowUp")
    expect(chat.page.locator("#question")).to_have_value(QUESTION)
    chat.page.unroute_all()
    chat.ask("Find me a bus to Oakland")
    assert chat.page.locator("article.user .body").all_inner_texts() == ["Find me a bus to Oakland"]
    seeds = [_seed(chat)]
    chat.page.get_by_role("button", name="Another answer").click()
    expect(chat.page.locator("#go")).to_have_attribute("data-busy", "true")
    assert chat.answered("done")
    seeds.append(_seed(chat))
    assert seeds[0] == "5" != seeds[1]  # which may lead to the same words
    assert chat.page.locator("article.assistant").count() == 1


def _seed(chat: ChatPage) -> str:
    found = re.search(r"seed (\d+)", chat.page.locator("article.assistant footer").last.inner_text())
    assert found
    return found[1]


def test_the_stop_button_ends_the_request(opened: Open) -> None:
    chat = opened(SLOW)
    chat.long_answers()
    with chat.page.expect_event("requestfailed", lambda request: "completions" in request.url):
        chat.begin(QUESTION)
        chat.page.get_by_role("button", name="Stop").click()
    assert chat.answered("stopped")
    expect(chat.page.get_by_role("button", name="Send")).to_be_visible()


def test_keys_are_enough(opened: Open) -> None:
    chat = opened()
    page = chat.page
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    expect(page.locator("#question")).to_have_value("one\ntwo")
    page.keyboard.press("Enter")
    chat.answered("done")
    assert page.locator("article.user .body").inner_text() == "one\ntwo"
    page.reload()
    page.locator(".skip").focus()
    reached = [_focused(chat)]
    while reached[-1] != "question":
        page.keyboard.press("Tab")
        reached.append(_focused(chat))
        if reached[-1] == "ride-switch":
            page.keyboard.press("Space")
        assert len(reached) < 40
    for passed in ("ride-switch", "theme", "open-settings", "new", "Rename", "Export", "Delete", "Copy", "Edit"):
        assert passed in reached
    expect(page.locator("#ride")).to_be_visible()
    page.locator("#open-settings").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#settings")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#settings")).to_be_hidden()
    assert _focused(chat) == "open-settings"


def _focused(chat: ChatPage) -> str:
    return str(chat.page.evaluate("() => document.activeElement.id || document.activeElement.ariaLabel || ''"))


def test_conversations_are_renamed_exported_deleted_and_brought_back(opened: Open) -> None:
    chat = opened()
    said = chat.ask(QUESTION)
    page = chat.page
    page.get_by_role("button", name="Rename").click()
    page.keyboard.type("Hotels")
    page.keyboard.press("Enter")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    assert download.value.suggested_filename == "Hotels.json"
    exported = json.loads(Path(download.value.path()).read_text())
    assert exported["messages"] == [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": said, "seed": 5},
    ]
    page.get_by_role("button", name="Delete").click()
    expect(page.locator("article")).to_have_count(0)
    expect(page.locator("#conversations li")).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#conversations .name")).to_have_text(["Hotels"])
    page.get_by_role("button", name="New conversation").click()
    chat.ask("Find me a bus")
    assert page.locator("#conversations .name").all_inner_texts() == ["Find me a bus", "Hotels"]


def test_settings_go_into_the_request(opened: Open) -> None:
    chat = opened()
    page = chat.page
    page.get_by_role("button", name="Settings").first.click()
    page.get_by_label("System prompt").fill("Be brief")
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Seed").fill("")
    page.get_by_label("Most tokens").fill("7")
    page.get_by_label("When the network is gone").select_option("never")
    page.keyboard.press("Escape")
    with page.expect_request("**/v1/chat/completions") as asked:
        chat.ask(QUESTION)
    assert asked.value.post_data_json == {
        "messages": [{"role": "system", "content": "Be brief"}, {"role": "user", "content": QUESTION}],
        "temperature": 0,
        "max_tokens": 7,
        "outrider": {"ride": True, "offline": "never"},
        "stream": True,
    }


HOSTILE = (
    "<img src=x onerror=alert(1)> <b>bold</b>\n\n- one\n- `two`\n\n3. three\n\n```html\n<script>alert(2)</script>\n```"
)


def test_what_a_model_says_is_text(opened: Open) -> None:
    chat = opened()
    answer = {"role": "assistant", "text": HOSTILE, "state": "done", "lengths": [4, 7], "writers": "ds"}
    kept = {"id": "x", "title": "<i>title</i>", "changed": 1, "messages": [{"role": "user", "text": "?"}, answer]}
    chat.keep("outrider.chat.x", kept)
    body = chat.page.locator("article.assistant .body")
    expect(body.locator("p")).to_have_text("<img src=x onerror=alert(1)> <b>bold</b>")
    expect(body.locator("pre code")).to_have_text("<script>alert(2)</script>")
    expect(body.locator("ul li")).to_have_text(["one", "two"])
    expect(body.locator("ol")).to_have_attribute("start", "3")
    expect(chat.page.locator("#conversations .name")).to_have_text("<i>title</i>")
    chat.page.locator("label.switch").click()
    expect(body).to_have_text(HOSTILE)
    assert body.locator("img, b, script").count() == 0


MARKDOWN = """## What a *drafter* does

#### A level is skipped

A **small model** guesses; see [the paper](https://arxiv.org/abs/2408.07978) or https://example.org/a_b_c.
[Not a link](javascript:alert(1)) and 2*3*4 and snake_case_name.

1. **Draft**
   - fast

2. Verify

   ```python
   x = "**y**"
   ```

| Round trip | Outrider |
|:--|--:|
| 20 ms | `13|2` ms | more |
| 100\\|200 ms | **19.7** ms |

> # Same
> words.

---
~~~
<b>open</b>"""


def shown(chat: ChatPage, text: str) -> Locator:
    """The body of an answer with this text, as the page shows it."""
    answer = {"role": "assistant", "text": text, "state": "done", "lengths": [], "writers": ""}
    messages = [{"role": "user", "text": "?", "state": "done"}, answer]
    chat.keep("outrider.chat.x", {"id": "x", "title": "x", "changed": 1, "messages": messages})
    body = chat.page.locator("article.assistant .body")
    expect(body.locator("> *").first).to_be_attached()
    return body


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_markdown_is_shown_as_elements(opened: Open, scheme: str, width: int) -> None:
    chat = opened(color_scheme=scheme, viewport={"width": width, "height": 800}, permissions=["clipboard-read"])
    body = shown(chat, MARKDOWN)
    expect(body.locator("h2 em")).to_have_text("drafter")
    expect(body.locator("> p strong")).to_have_text("small model")
    links = body.locator("a").evaluate_all("all => all.map(one => [one.textContent, one.href, one.rel])")
    assert links == [
        ["the paper", "https://arxiv.org/abs/2408.07978", "noopener noreferrer"],
        ["https://example.org/a_b_c", "https://example.org/a_b_c", "noopener noreferrer"],
    ]
    expect(body.locator("p").first).to_contain_text("[Not a link](javascript:alert(1)) and 2*3*4 and snake_case_name.")
    assert body.locator("ol > li").count() == 2
    expect(body.locator("ol > li > ul > li")).to_have_text("fast")
    expect(body.locator("ol > li .code code")).to_have_text('x = "**y**"')
    assert body.locator("table tr").evaluate_all(
        "all => all.map(row => [...row.cells].map(one => one.textContent))"
    ) == [
        ["Round trip", "Outrider"],
        ["20 ms", "`13"],
        ["100|200 ms", "19.7 ms"],
    ]
    assert body.locator("blockquote p").all_inner_texts() == ["Same", "words."]
    assert body.locator("hr").count() == 1
    expect(body.locator("> .code code")).to_have_text("<b>open</b>")
    body.get_by_role("button", name="Copy code").first.click()
    expect(chat.page.locator("#toast")).to_have_text("Copied")
    assert chat.page.evaluate("() => navigator.clipboard.readText()") == 'x = "**y**"'
    _check(chat, width)


@pytest.mark.parametrize("mark", ["**x ", "`", "[a](", "> ", "- a\n\n", "a\n|-|"])
def test_marks_without_end_do_not_hold_up_the_page(opened: Open, mark: str) -> None:
    shown(opened(), mark * (20_000 // len(mark)))


def test_words_keep_their_place_while_markdown_is_written(opened: Open) -> None:
    """A block that is complete stays the element it was, so that what somebody selected in it stays selected."""
    chat = opened({})
    pieces = ["# One\n\nfirst *pa", "ragraph*\n\n- a\n- ", "b\n\nend"]
    kept = chat.page.evaluate(
        """async pieces => {
            const { show } = await import("./text.js");
            const there = document.createElement("div");
            const first = [];
            pieces.forEach((_, count) => {
                show(there, pieces.slice(0, count + 1).join(""));
                first.push(there.firstElementChild);
            });
            return [first.every(one => one === first[0]), [...there.children].map(one => one.tagName)];
        }""",
        pieces,
    )
    assert kept == [True, ["H2", "P", "UL", "P"]]


@pytest.fixture(scope="module")
def plain(browser: Browser) -> Iterator[tuple[VerifierProcess, AssistantProcess]]:
    """A verifier with two models, and an assistant without a drafter, which answers nothing alone."""
    del browser
    options = [*VERIFIER_OPTIONS, "--model", f"second={DEMO / 'target'}"]
    with (
        VerifierProcess(DEMO / "target", options=options) as verifier,
        AssistantProcess(verifier.address) as assistant,
    ):
        yield verifier, assistant


def test_the_model_menu_lists_what_is_served(browser: Browser, plain: tuple[VerifierProcess, AssistantProcess]) -> None:
    chat = ChatPage(browser, plain[1].url, SETTINGS)
    menu = chat.page.locator("#model")
    expect(menu.locator("option")).to_have_count(2)
    with chat.page.expect_request("**/v1/chat/completions") as asked:
        chat.ask(QUESTION)
    assert "model" not in (asked.value.post_data_json or {})
    menu.select_option("second")
    expect(chat.page.locator("#who")).to_have_text("Written by second; no drafter here.")
    chat.page.reload()
    expect(menu).to_have_value("second")
    with chat.page.expect_request("**/v1/chat/completions") as asked:
        chat.ask(QUESTION)
    assert (asked.value.post_data_json or {}).get("model") == "second"
    chat.keep("outrider.settings", {**SETTINGS, "model": "gone"})
    expect(menu).to_have_value("")
    with chat.page.expect_request("**/v1/chat/completions") as asked:
        chat.ask(QUESTION)
    assert "model" not in (asked.value.post_data_json or {})
    chat.close()


def test_no_answer_is_offered_that_the_server_refuses(
    browser: Browser, plain: tuple[VerifierProcess, AssistantProcess]
) -> None:
    chat = ChatPage(browser, plain[1].url, {**SETTINGS, "offline": "auto"})  # kept from a server that allowed it
    chat.page.get_by_role("button", name="Settings").first.click()
    expect(chat.page.locator("#offline option[value=auto]")).to_be_disabled()
    expect(chat.page.locator("#offline")).to_have_value("")
    expect(chat.page.locator("#offline-words")).to_contain_text("--offline-answers")
    chat.page.keyboard.press("Escape")
    chat.ask(QUESTION)
    chat.close()


def test_the_page_says_that_the_verifier_is_away_while_it_waits(browser: Browser) -> None:
    with AssistantProcess("127.0.0.1:1") as assistant:
        chat = ChatPage(browser, assistant.url, state="waiting", viewport={"width": 390, "height": 800})
        words = chat.page.locator("#link-words")
        expect(words).to_have_text("Waiting for the network")
        assert words.evaluate("one => one.scrollWidth <= one.clientWidth")  # not cut
        chat.page.fill("#question", QUESTION)
        chat.page.press("#question", "Enter")
        waits = chat.page.locator("article[data-state=writing] .waits")
        expect(waits).to_contain_text("The verifier cannot be reached; trying again.")
        expect(waits).to_contain_text("127.0.0.1:1")
        chat.page.keyboard.press("Escape")
        chat.answered("stopped")
        expect(chat.page.locator(".waits")).to_have_count(0)
        chat.close()


def writers_of(chat: ChatPage) -> set[str]:
    """Who wrote the tokens of an answer, as the ride shows it."""
    said = chat.ask(QUESTION)
    chat.page.locator("label.switch").click()
    assert chat.answered("done") == said
    spans = chat.page.locator("article.assistant .tokens span")
    return {re.sub("^by-", "", name) for name in spans.evaluate_all("all => all.map(one => one.className)")}


def test_the_ride_shows_who_wrote_what(opened: Open) -> None:
    for _ in range(5):  # on a busy machine the drafter may miss every step of a whole answer
        chat = opened()
        writers = writers_of(chat)
        assert writers <= {"device", "branch", "server", "corrected"}
        if "device" in writers:
            break
    assert "device" in writers
    page = chat.page
    looks = page.locator(".legend .sample").evaluate_all("all => all.map(one => getComputedStyle(one).textDecoration)")
    assert len(set(looks)) == len(looks) == 6  # without colours, too
    shares = page.locator(".legend .share").all_inner_texts()
    assert 97 <= sum(int(share.removesuffix(" %")) for share in shares) <= 103
    figures = page.locator(".strip .value").all_inner_texts()
    assert all(re.match(r"\d+ (ms|tokens|%|tokens/s)$", figure) for figure in figures)
    assert int(figures[0].split()[0]) >= RTT_MS
    expect(page.locator("#timeline-words")).to_contain_text("drafted tokens went up")
    drawn = (
        "canvas => new Set(new Uint32Array(canvas.getContext('2d')"
        ".getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size"
    )
    assert page.locator("#timeline").evaluate(drawn) > 20


def test_tokens_are_coloured_as_they_come(opened: Open) -> None:
    chat = opened({**SLOW, "ride": True})
    chat.long_answers()
    chat.begin(QUESTION)
    expect(chat.page.locator("article[data-state=writing] .tokens span").nth(3)).to_be_visible()
    expect(chat.page.locator(".strip .value").first).to_have_text(re.compile(r"\d+ ms"))
    chat.page.keyboard.press("Escape")
    chat.answered("stopped")


def test_a_race_has_the_same_words_twice(opened: Open, servers: Servers) -> None:
    chat = opened({**SETTINGS, "ride": True}, reduced_motion="reduce")
    chat.ask(QUESTION)
    page = chat.page
    asked: list[Any] = []
    page.on("request", lambda request: asked.append(request.post_data_json) if request.method == "POST" else None)
    page.get_by_role("button", name="Race against plain streaming").click()
    expect(page.locator("#verdict")).to_contain_text("Same words: yes")
    assert page.locator(".lane-text").all_inner_texts() == [words(servers)] * 2
    assert [body.get("outrider", {}).get("pace") for body in asked] == [None, "streaming", "riding"]
    assert {body["seed"] for body in asked} == {5}
    expect(page.locator("#figures tbody tr")).to_have_count(8)
    page.get_by_role("button", name="Close the race").click()
    expect(page.locator("#race")).to_be_hidden()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 360)])
def test_nobody_is_kept_out(opened: Open, scheme: str, width: int) -> None:
    chat = opened(color_scheme=scheme, viewport={"width": width, "height": 800}, reduced_motion="reduce")
    page = chat.page
    chat.ask(QUESTION)
    assert _is_dark(chat) == (scheme == "dark")
    _check(chat, width)
    page.get_by_role("button", name="Settings").first.click()
    _check(chat, width)
    page.keyboard.press("Escape")
    page.locator("label.switch").click()
    _check(chat, width)
    page.get_by_role("button", name="Race against plain streaming").click()
    expect(page.locator("#verdict")).to_contain_text("Same words: yes")
    _check(chat, width)


def _check(chat: ChatPage, width: int) -> None:
    found = Axe().run(chat.page).response["violations"]
    assert [fault["id"] for fault in found] == []
    assert chat.page.evaluate("() => document.documentElement.scrollWidth") <= width


def _is_dark(chat: ChatPage) -> bool:
    colour = chat.page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    return max(map(int, re.findall(r"\d+", colour)[:3])) < 64


def test_dark_is_a_choice_that_is_kept(opened: Open) -> None:
    chat = opened(color_scheme="light")
    chat.page.get_by_role("button", name="Dark or light").click()
    assert _is_dark(chat)
    chat.page.reload()
    assert _is_dark(chat)


def test_a_phone_has_its_conversations_behind_a_button(opened: Open) -> None:
    chat = opened(viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
    chat.ask(QUESTION)
    expect(chat.page.locator("#history")).to_be_hidden()
    chat.page.get_by_role("button", name="Conversations").tap()
    expect(chat.page.locator("#history")).to_be_visible()
    chat.page.get_by_role("button", name="New conversation").tap()
    expect(chat.page.locator("#history")).to_be_hidden()
    expect(chat.page.get_by_text("What would you like to ask?")).to_be_visible()


def test_the_end_stays_on_show_when_the_ride_takes_room(opened: Open) -> None:
    chat = opened(viewport={"width": 360, "height": 640})
    for question in ("Find me a bus, please. " * 12, QUESTION):
        chat.ask(question)
    last = chat.page.locator("article.assistant footer").last
    expect(last).to_be_in_viewport()
    chat.page.locator("label.switch").click()
    expect(chat.page.locator("#ride")).to_be_visible()
    expect(last).to_be_in_viewport()
    chat.page.locator("#scroller").evaluate("one => { one.scrollTop = 0 }")
    expect(chat.page.get_by_role("button", name="To the end")).to_be_visible()
    chat.page.locator("label.switch").click()
    expect(chat.page.locator("#ride")).to_be_hidden()
    assert chat.page.locator("#scroller").evaluate("one => one.scrollTop") == 0


def test_it_is_small_and_needs_nothing_from_elsewhere(opened: Open) -> None:
    assert sum(file.stat().st_size for file in mount.FOLDER.iterdir()) < MOST_BYTES
    chat = opened({})  # which loads it once
    sizes = chat.page.evaluate(
        "() => performance.getEntriesByType('resource').concat(performance.getEntriesByType('navigation'))"
        ".map(one => one.decodedBodySize)"
    )
    assert 10_000 < sum(sizes) < MOST_BYTES
    assert chat.context.cookies() == []


def test_the_policy_holds(opened: Open) -> None:
    chat = opened()
    with pytest.raises(Error, match="TrustedHTML"):
        chat.page.evaluate("() => { document.body.innerHTML = '<b>x</b>' }")
    with pytest.raises(Error, match="Failed to fetch"):
        chat.page.evaluate("() => fetch('http://localhost:9/')")
    styled = chat.page.evaluate(
        "() => { const one = document.createElement('p');"
        " one.setAttribute('style', 'color: red'); return one.style.color }"
    )
    assert styled == ""
    assert len(chat.faults) >= 2  # the browser says so, too
    assert all("Content Security Policy" in fault or "TrustedHTML" in fault for fault in chat.faults)
    chat.faults.clear()


def test_errors_are_sentences_with_a_way_on(opened: Open) -> None:
    chat = opened()
    chat.page.fill("#question", "hotel " * 3000)
    chat.page.press("#question", "Enter")
    chat.answered("failed")
    expect(chat.page.get_by_role("alert")).to_contain_text("tokens")
    chat.page.route("**/v1/chat/completions", lambda route: route.abort())
    chat.page.get_by_role("button", name="New conversation").click()
    chat.page.fill("#question", QUESTION)
    chat.page.press("#question", "Enter")
    expect(chat.page.get_by_role("alert")).to_contain_text("edge-client serve")
    chat.page.unroute_all()
    chat.page.get_by_role("button", name="Try again").click()
    assert chat.answered("done")
    assert len(chat.faults) == 2
    assert all("Failed to load resource" in fault for fault in chat.faults)  # Chromium's own words for the above
    chat.faults.clear()


def test_a_verifier_that_is_killed_and_started_again_changes_no_word(opened: Open, servers: Servers) -> None:
    expected = words(servers, max_tokens=160, ignore_eos=True)
    chat = opened(SLOW)
    chat.long_answers()
    chat.begin(QUESTION)
    with servers.dead():
        expect(chat.page.locator("#link-words")).to_have_text("Waiting for the network")
        before = chat.page.locator("article.assistant .body").inner_text()
    said = chat.answered("done")
    expect(chat.page.locator("#link-words")).to_have_text("Live")
    assert said == expected
    assert said.startswith(before)
    assert said != before


def test_a_device_that_is_not_let_in_any_more_is_told_so(browser: Browser, tmp_path: Path) -> None:
    keys, own = KeyFile(tmp_path / "keys.toml"), tmp_path / "own"
    own.write_text(keys.add("device", {}))
    options = [*VERIFIER_OPTIONS, "--api-keys", str(keys.path)]
    device = ["--verifier-api-key-file", str(own), "--api-key", "of-the-page"]
    with (
        VerifierProcess(DEMO / "target", options=options) as verifier,
        AssistantProcess(verifier.address, options=device) as assistant,
    ):
        chat = ChatPage(browser, assistant.url)
        keys.remove("device")
        with chat.page.expect_request("**/status") as first:
            expect(chat.page.locator("#link-words")).to_have_text("The verifier refuses this device")
        assert "authorization" not in first.value.headers
        chat.page.get_by_role("button", name="Settings").click()
        chat.page.fill("#key", "of-the-page")
        chat.page.keyboard.press("Escape")
        with chat.page.expect_response(lambda one: one.url.endswith("/status") and "reason" in one.text()) as told:
            pass
        assert told.value.request.headers["authorization"] == "Bearer of-the-page"
        chat.close()


def test_the_device_answers_alone_and_its_words_are_checked(opened: Open, servers: Servers) -> None:
    expected = words(servers, max_tokens=160, ignore_eos=True)
    chat = opened({**SLOW, "ride": True, "offline": "auto"})
    chat.long_answers()
    chat.begin(QUESTION)
    alone = chat.page.locator("article.assistant .alone")
    own = chat.page.locator(".tokens .by-offline")
    with servers.dead():
        expect(alone).to_contain_text("alone, without the verifier")
        assert own.count() > 0
    expect(chat.page.locator("#link-words")).to_have_text("Live")
    alone.get_by_role("button", name="Have the verifier check it").click()
    expect(chat.page.locator(".difference ins")).not_to_be_empty()
    chat.page.get_by_role("button", name="Take the verifier's words").click()
    expect(own).to_have_count(0)
    assert chat.answered("done") == expected
