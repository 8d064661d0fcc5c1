"""A browser for tests of the page: the Chromium that is there, and a page that forgives no fault."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

DEADLINE_MS = 30_000
NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Skips the test where there is none."""
    named = os.environ.get("OUTRIDER_TEST_CHROMIUM")
    path = named or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no Chromium here: apt install chromium, or name one in OUTRIDER_TEST_CHROMIUM")
    options = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's sandbox does not work for root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=options)
        yield browser
        browser.close()


class ChatPage:
    """The page of an assistant in a fresh profile. faults: what the console said, what was asked of other servers."""

    def __init__(
        self, browser: Browser, url: str, settings: dict[str, Any] | None = None, *, state: str = "live", **context: Any
    ) -> None:
        """settings: kept in the browser beforehand. state: of the link, waited for. context: of Playwright."""
        self.address = url.removesuffix("v1")
        self.context = browser.new_context(**context)
        self.context.set_default_timeout(DEADLINE_MS)
        expect.set_options(timeout=DEADLINE_MS)
        self.page: Page = self.context.new_page()
        self.faults: list[str] = []
        self.page.on(
            "console", lambda said: self.faults.append(said.text) if said.type in ("error", "warning") else None
        )
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", lambda request: self._asked(request.url))
        self.page.goto(self.address)
        if settings:
            self.keep("outrider.settings", settings)
        expect(self.page.locator("#link")).to_have_attribute("data-state", state)

    def _asked(self, url: str) -> None:
        if not url.startswith((self.address, "blob:", "data:")):
            self.faults.append(f"asked {url}")

    def keep(self, name: str, value: Any) -> None:
        """Put something where the page keeps things, and load it again."""
        self.page.evaluate("([name, value]) => localStorage.setItem(name, value)", [name, json.dumps(value)])
        self.page.reload()

    def long_answers(self) -> None:
        """From now on answers end with their last token only, so that there is time to do something meanwhile."""

        def lengthen(route: Route) -> None:
            body: dict[str, Any] = route.request.post_data_json or {}
            route.continue_(post_data=json.dumps(body | {"ignore_eos": True}))

        self.page.route("**/v1/chat/completions", lengthen)

    def begin(self, text: str) -> None:
        """Ask, and wait for the first words."""
        self.page.fill("#question", text)
        self.page.press("#question", "Enter")
        expect(self.page.locator("article.assistant .body").last).not_to_be_empty()

    def ask(self, text: str) -> str:
        """Ask, and wait for the whole answer."""
        self.page.fill("#question", text)
        self.page.press("#question", "Enter")
        return self.answered("done")

    def answered(self, state: str) -> str:
        """The last answer's text, once it is in this state."""
        expect(self.page.locator("article").last).to_have_class(re.compile("assistant"))
        last = self.page.locator("article.assistant").last
        expect(last).to_have_attribute("data-state", state)
        return last.locator(".body").inner_text()

    def close(self) -> None:
        """Fails the test if anything was wrong on the way."""
        self.context.close()
        assert not self.faults
