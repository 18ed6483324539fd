"""`GET /`: what runs here, for browsers and for programs; open to all, also through a tunnel."""

from __future__ import annotations

from html.parser import HTMLParser
from importlib import metadata
from pathlib import Path

import pytest

from broker.i18n import LANGUAGES, Messages
from tests.support.api import open_api
from tests.support.planted_secrets import PLANTED

pytestmark = pytest.mark.anyio

KEY = "key-of-a-caller-0123456789"
SECRET = "a-secret-of-the-tests-0123456789"
PROVIDER_KEY = PLANTED["kie"]
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
TUNNEL = {"Host": "abc.ngrok-free.app", "X-Forwarded-For": "8.8.8.8", "X-Forwarded-Proto": "https"}


class Page(HTMLParser):
    """Tags, links and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: dict[str, set[str]] = {}
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, set()).add(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


async def test_program_gets_json(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        for accept in ("", "*/*", "application/json", "application/json, text/html", "text/html;q=0", "x"):
            answer = await broker.client.get("/", headers={"Accept": accept})
            assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json"), accept
            assert answer.headers["vary"] == "Accept, Accept-Language"
        document = answer.json()
        assert document.pop("message").startswith("This is a Nano Banana broker")
        assert document == {
            "service": "nano-banana-broker",
            "pretendPictures": False,
            "docs": "/docs",
            "openapi": "/openapi.json",
            "health": "/health",
        }
        for link in ("docs", "openapi", "health"):
            assert (await broker.client.get(document[link])).status_code == 200


async def test_browser_gets_a_page(tmp_path: Path) -> None:
    """Its policy allows neither scripts nor styles nor anything from elsewhere, and it has none."""
    async with open_api(tmp_path) as broker:
        for accept in (BROWSER, "TEXT/HTML", "text/html, application/json;q=0.9", "text/html;q=0.5,*/*"):
            answer = await broker.client.get("/", headers={"Accept": accept})
            assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8"), accept
        assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert answer.headers["vary"] == "Accept, Accept-Language"
        page = Page(answer.text)
        assert not page.tags & {"script", "style", "link", "img", "form", "base", "iframe"}
        assert "style" not in page.attributes
        assert page.attributes["href"] == {"docs", "openapi.json"}
        assert "pretend" not in page.text
        head = await broker.client.head("/", headers={"Accept": BROWSER})
        assert (head.status_code, head.content) == (200, b"")


async def test_sandbox_is_named_in_the_language_of_the_client(tmp_path: Path) -> None:
    messages = Messages.load()
    async with open_api(tmp_path, kie_keys=()) as broker:
        for language in LANGUAGES:
            headers = {"Accept-Language": language}
            sentence = messages.get("root_pretend", language)
            document = (await broker.client.get("/", headers=headers)).json()
            assert document["pretendPictures"] is True
            assert sentence in document["message"]
            page = Page((await broker.client.get("/", headers={"Accept": BROWSER, **headers})).text)
            assert page.attributes["lang"] == {language}
            assert sentence in page.text


async def test_stranger_learns_only_what_runs(tmp_path: Path) -> None:
    """The same answer for all, whatever headers a tunnel or proxy adds: no address, setting, version or key."""
    async with open_api(tmp_path, api_keys=(KEY,), secret_key=SECRET) as broker:
        hidden = [KEY, SECRET, PROVIDER_KEY, "ngrok", "broker.example", "127.0.0.1", "kie", str(tmp_path)]
        hidden.append(metadata.version("nano-banana-broker"))
        for accept in ("*/*", BROWSER):
            known = await broker.client.get("/", headers={"Accept": accept, "Authorization": f"Bearer {KEY}"})
            stranger = await broker.client.get("/", headers={"Accept": accept, **TUNNEL})
            assert (stranger.status_code, stranger.content) == (200, known.content)
            assert [word for word in hidden if word in stranger.text] == []
