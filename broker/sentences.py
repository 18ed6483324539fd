"""What people read, in their language: the reader of `sentences.toml`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Final, Literal, get_args

from broker.errors import STATUS_OF, TASK_CODES

Language = Literal["en", "zh", "ru"]
LANGUAGES: Final[tuple[Language, ...]] = get_args(Language)

MESSAGES: Final = ("processing", "billed_yes", "billed_no", "billed_unknown")
"""Keys that are no error codes."""

_WISH: Final = re.compile(
    r"\s*([A-Za-z]{1,8}|\*)(?:-[A-Za-z0-9-]{1,40})?\s*(?:;\s*q\s*=\s*([01](?:\.[0-9]{0,3})?)\s*)?"
)
_LONGEST_HEADER: Final = 500


@dataclass(frozen=True)
class Sentences:
    """Every sentence by key, then by language. English is what the code says itself where a key has none."""

    table: Mapping[str, Mapping[str, str]]

    @classmethod
    def load(cls, text: str | None = None) -> Sentences:
        """Read the TOML given, or the one shipped. ValueError where a sentence or a language is missing."""
        table = tomllib.loads(text or resources.files("broker").joinpath("sentences.toml").read_text("utf-8"))
        for key in {*MESSAGES, *TASK_CODES, *STATUS_OF} - table.keys():
            raise ValueError(f"sentences: {key} is missing")
        for key, by_language in table.items():
            if set(by_language) != set(LANGUAGES):
                raise ValueError(f"sentences: {key} needs {', '.join(LANGUAGES)}")
        return cls(table)

    def say(self, key: str, language: Language, detail: str = "") -> str:
        """The sentence of a key; `{detail}` in it is where the specific words of the case go."""
        return self.table[key][language].replace("{detail}", detail).strip()

    def end(self, code: str, billed: str, language: Language) -> str:
        """Why a task did not end well, what to do about it, and whether it cost."""
        sentences = (self.say(code, language), self.say(f"billed_{billed}", language))
        return ("" if language == "zh" else " ").join(sentences)


def language_of(header: str) -> Language:
    """The language an Accept-Language header likes best of those we speak; English where it names none of them."""
    best, weight = "en", 0.0
    for part in header[:_LONGEST_HEADER].split(","):
        match = _WISH.fullmatch(part)
        if match is None:
            continue
        name, wish = match[1].lower(), float(match[2] or 1)
        if wish > weight and (name in LANGUAGES or name == "*"):
            best, weight = ("en" if name == "*" else name), wish
    return best  # type: ignore[return-value]  # one of LANGUAGES by the line above
