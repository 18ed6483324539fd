"""The page of the chat service: its requests from the signup to the logout, with the headers of a browser."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Sequence
from typing import Any

import httpx

PASSWORD = "password-of-the-page"
FETCH = {"Accept": "*/*", "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}
"""What a browser adds to a `fetch` of the page; and its origin, unless it only reads."""
NAVIGATION = {"Accept": "text/html,*/*;q=0.8", "Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}
SETTINGS = {"model": "gemini-2.5-flash-image-preview", "temperature": 1, "top_p": 0.95, "candidate_count": 1}
"""Of the side panel."""


def complete_flow(base_url: str, image: bytes) -> list[bytes]:
    """Order from a text, from an image, and from two; return the images."""
    with httpx.Client(base_url=base_url, headers=FETCH, timeout=60) as browser:
        page = ChatPage(browser)
        page.open()
        name = f"page {secrets.token_hex(4)}"
        page.sign_up(name)
        page.begin_conversation()
        made = [
            page.send("a red fox by the page", []),
            page.send("a blue fox by the page", [image]),
            page.send("the foxes by the page in one picture", [image, image], path="/v1/compose"),
        ]
        page.check_messages([["a red fox by the page"], ["a blue fox by the page"], ["the foxes"]], made)
        page.rename_conversation("foxes")
        page.log_out()
        page.log_in(name)
        assert [one["title"] for one in page.read("/conversations")] == ["foxes"]
        page.delete_conversation()
        page.log_out()
    return made


class ChatPage:
    """The page in a browser, which keeps its cookies."""

    def __init__(self, browser: httpx.Client) -> None:
        self._browser = browser
        self._origin = {"Origin": str(browser.base_url).rstrip("/")}
        self._conversation = ""

    def open(self) -> None:
        html = self._browser.get("/", headers=NAVIGATION).raise_for_status()
        assert html.headers["content-type"].startswith("text/html")
        assert self._browser.get("/health").is_success
        assert self.read("/me") == {"authenticated": False}

    def sign_up(self, name: str) -> None:
        self._enter("/auth/signup", name)
        assert self.read("/conversations") == []

    def log_in(self, name: str) -> None:
        self._enter("/auth/login", name)

    def log_out(self) -> None:
        self.write("POST", "/auth/logout")
        assert not self._browser.cookies.get("broker_session")
        assert self.read("/me") == {"authenticated": False}
        assert self._browser.get("/conversations").status_code == 401

    def begin_conversation(self) -> None:
        begun = self.write("POST", "/conversations", json={"title": "新的会话"})
        self._conversation = begun["id"]
        assert [one["id"] for one in self.read("/conversations")] == [self._conversation]
        assert self.read(f"/conversations/{self._conversation}/messages") == []

    def send(self, prompt: str, images: Sequence[bytes], *, path: str = "/v1/edit") -> bytes:
        """Send what stands in the box; return the one image of the answer."""
        fields = {"prompt": prompt, **SETTINGS, "conv_id": self._conversation}
        if images:
            files = [("files", (f"{number}.png", image, "image/png")) for number, image in enumerate(images)]
            answer = self.write("POST", path, data={key: str(value) for key, value in fields.items()}, files=files)
        else:
            answer = self.write("POST", "/v1/generate", json=fields)
        assert all(isinstance(text, str) for text in answer["texts"])
        (encoded,) = answer["images"]
        made = base64.b64decode(encoded, validate=True)
        assert made.startswith(b"\x89PNG")
        return made

    def check_messages(self, prompts: Sequence[Sequence[str]], made: Sequence[bytes]) -> None:
        """Check that the conversation shows each prompt and each image, in order."""
        messages = self.read(f"/conversations/{self._conversation}/messages")
        assert [one["role"] for one in messages] == ["user", "assistant"] * len(made)
        for asked, (prompt,) in zip(messages[::2], prompts, strict=True):
            assert asked["prompt"].startswith(prompt), asked
        for answered in messages[1::2]:
            (encoded,) = answered["images"]
            assert base64.b64decode(encoded, validate=True)

    def rename_conversation(self, title: str) -> None:
        renamed = self.write("PATCH", f"/conversations/{self._conversation}", json={"title": title})
        assert renamed["title"] == title

    def delete_conversation(self) -> None:
        self.write("DELETE", f"/conversations/{self._conversation}")
        assert self.read("/conversations") == []

    def read(self, path: str) -> Any:
        return self._browser.get(path).raise_for_status().json()

    def write(self, method: str, path: str, **body: Any) -> Any:
        answer = self._browser.request(method, path, headers=self._origin, **body)
        assert answer.is_success, (path, answer.status_code, answer.text)
        return answer.json()

    def _enter(self, path: str, name: str) -> None:
        user = self.write("POST", path, json={"username": name, "password": PASSWORD})
        me = self.read("/me")
        assert (me["authenticated"], me["username"], me["id"]) == (True, name, user["id"])
