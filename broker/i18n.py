"""User-facing messages in English, Chinese and Russian: the reader of `messages.toml`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final, Literal, get_args

from broker.errors import STATUS_OF, TASK_CODES

Language = Literal["en", "zh", "ru"]
LANGUAGES: Final[tuple[Language, ...]] = get_args(Language)

OTHER_KEYS: Final = (
    *("processing", "deleted", "database_replaced", "billed_yes", "billed_no", "billed_unknown"),
    *("quota_images", "quota_usd", "quota_in_flight", "quota_pins", "quota_bytes"),
    *("root_about", "root_pretend", "root_docs", "no_image_hint", "google_key_hint", "untitled_conversation"),
)
"""Keys beside the error codes."""

_PREFERENCE: Final = re.compile(
    r"\s*([A-Za-z]{1,8}|\*)(?:-[A-Za-z0-9-]{1,40})?\s*(?:;\s*q\s*=\s*([01](?:\.[0-9]{0,3})?)\s*)?"
)
_MAX_HEADER_CHARACTERS: Final = 500


@dataclass(frozen=True)
class Messages:
    """Every message by key, then by language. For most errors the English one is the detail alone."""

    table: Mapping[str, Mapping[str, str]]

    @classmethod
    def load(cls, text: str | None = None) -> Messages:
        """Read the TOML given, or the one of the package. Raises ValueError for a missing message or language."""
        table = _parse_toml(text or resources.files("broker").joinpath("messages.toml").read_text("utf-8"))
        for key in {*OTHER_KEYS, *TASK_CODES, *STATUS_OF} - table.keys():
            raise ValueError(f"messages: {key} is missing")
        for key, by_language in table.items():
            if set(by_language) != set(LANGUAGES):
                raise ValueError(f"messages: {key} needs {', '.join(LANGUAGES)}")
        return cls(table)

    def get(self, key: str, language: Language, detail: str = "") -> str:
        """Return the message of a key; `{detail}` in it is replaced by the words of the case."""
        return self.table[key][language].replace("{detail}", detail).strip()

    def task_error(self, code: str, billed: str, language: Language) -> str:
        """Return why a task failed, what to do about it, and if it was billed."""
        messages = (self.get(code, language), self.get(f"billed_{billed}", language))
        return ("" if language == "zh" else " ").join(messages)


@cache
def _parse_toml(text: str) -> Mapping[str, Mapping[str, str]]:
    """Parse a document once per process."""
    return tomllib.loads(text)


def language_of(header: str) -> Language:
    """Return the language that an Accept-Language header prefers of those we have; English if it names none."""
    best: Language = "en"
    weight = 0.0
    for part in header[:_MAX_HEADER_CHARACTERS].split(","):
        match = _PREFERENCE.fullmatch(part)
        if match is None:
            continue
        name, preference = match[1].lower(), float(match[2] or 1)
        known = "en" if name == "*" else next((language for language in LANGUAGES if language == name), None)
        if preference > weight and known is not None:
            best, weight = known, preference
    return best
