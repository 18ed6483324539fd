"""Titles of conversations: one line of text, from a user or from the first prompt."""

from __future__ import annotations

from typing import Final

from broker.errors import ApiError

MAX_TITLE_CHARACTERS: Final = 200
MAX_DERIVED_CHARACTERS: Final = 60


def check_title(text: str) -> str:
    """Return a title without invisible characters. Raises `ApiError` for one that is empty or too long."""
    title = _one_line(text)
    if not title:
        raise ApiError("invalid_request", "The title is empty: write one.", field="title")
    if len(title) > MAX_TITLE_CHARACTERS:
        message = f"The title has {len(title)} characters; at most {MAX_TITLE_CHARACTERS} are kept: shorten it."
        raise ApiError("invalid_request", message, field="title")
    return title


def derive_title(prompt: str) -> str:
    """Return the title of a conversation that begins with this prompt, cut between words if it is long."""
    title = _one_line(prompt)
    if len(title) <= MAX_DERIVED_CHARACTERS:
        return title
    cut = title[:MAX_DERIVED_CHARACTERS]
    words = cut.rpartition(" ")[0]
    return f"{words if len(words) > MAX_DERIVED_CHARACTERS // 2 else cut}…"


def _one_line(text: str) -> str:
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())
