"""The page in a browser: write, ask, chat, choose, delete; a token; nothing runs that a memory's name says."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from running_server import Running, Serve, tiny

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
TEXT = (
    "The boat is called Ava. She lies in the old harbour. Nobody sails her. The boat is called Ava."
)
#: A folder to leave pictures in, for people to look at.
PICTURES = os.environ.get("PICTURES")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        own = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield own
        own.close()


@pytest.fixture(params=["light", "dark"])
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    width = 400 if request.param == "dark" else 1100
    own = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=request.param)
    wrong: list[object] = []
    own.on("pageerror", lambda error: wrong.append(error))
    own.on("console", lambda m: wrong.append(m.text) if "Security Policy" in m.text else None)
    yield own
    own.close()
    assert wrong == []


def picture(page: Page, name: str) -> None:
    if PICTURES:
        page.screenshot(path=Path(PICTURES) / f"{name}.png", full_page=True)


def asked(page: Page, server: Running, question: str) -> str:
    page.get_by_label("Question").fill(question)
    page.get_by_role("button", name="Ask").click()
    expect(page.get_by_role("button", name="Ask")).to_be_enabled()
    return page.locator("#log .assistant").last.inner_text()


def test_a_person_writes_a_text_and_asks_it(serve: Serve, page: Page) -> None:
    server = serve(tenants=())
    page.goto(server.url)
    expect(page.locator("#list-status")).to_have_text("None yet.")
    page.get_by_label("Name of the memory").fill("log/1")
    page.get_by_label("Text", exact=True).fill(TEXT)
    page.get_by_role("button", name="Write").click()
    expect(page.locator("#asked")).to_have_text("log/1")
    expect(page.locator("#fact-state")).to_have_text("1.0 KB")
    expect(page.locator("#fact-text")).to_contain_text("94 bytes")
    expect(page.locator("#fact-value")).to_have_text(re.compile(r"-?\d+ %|cannot"))
    said = asked(page, server, "Where is she?")
    messages = [{"role": "user", "content": "Where is she?"}]
    client = server.openai()

    def answer() -> str:
        got = client.chat.completions.create(
            model="tiny", messages=messages, extra_body={"memory": "log/1"}
        )
        return str(got.choices[0].message.content)

    assert said == answer()
    messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "Who?"}]
    assert asked(page, server, "Who?") == answer()
    picture(page, f"page-{page.viewport_size['width']}")  # type: ignore[index]
    page.get_by_role("button", name="New chat").click()
    expect(page.locator("#log li")).to_have_count(0)
    # No part of it is wider than the window.
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_label("Text", exact=True).fill("She is blue.")
    page.get_by_role("button", name="Add to the memory").click()
    expect(page.locator("#fact-text")).to_contain_text("12 bytes")
    page.get_by_role("button", name="Delete log/1").click()
    expect(page.locator("#list-status")).to_have_text("None yet.")
    expect(page.locator("#asked")).to_have_text("nothing yet")
    page.get_by_label("Question").fill("Where?")
    page.get_by_label("Question").press("Enter")
    expect(page.locator("#ask-status")).to_have_text("Write a text first, or choose a memory.")


def test_a_token_opens_ones_own_memories(serve: Serve, page: Page) -> None:
    server = serve({"tiny": tiny(), "other": tiny(seed=1)})
    name = "<img src=x onerror=alert(1)>"
    with server.http("ben") as ben:
        ben.put("/v1/memories/secret", json={"text": TEXT, "model": "tiny"})
    with server.http("ava") as ava:
        ava.put(f"/v1/memories/{name}", json={"text": TEXT, "model": "other"})
    page.goto(server.url)
    expect(page.locator("#list-status")).to_contain_text("give a token")
    page.get_by_label("Token").fill("wrong")
    page.get_by_role("button", name="Use").click()
    expect(page.locator("#list-status")).to_contain_text("give a token")
    page.get_by_label("Token").fill(server.tokens["ava"])
    page.get_by_role("button", name="Use").click()
    expect(page.locator("#memories li")).to_have_count(1)
    page.get_by_role("button", name=name, exact=True).click()
    expect(page.locator("#asked")).to_have_text(name)
    assert page.locator("#memories img, #asked img").count() == 0
    assert asked(page, server, "Where?")
    expect(page.get_by_label("Model", exact=True)).to_be_visible()
