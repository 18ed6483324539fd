"""The examples of docs/dialects.md."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PAGE: Final = Path(__file__).parents[2] / "docs" / "dialects.md"
_SECTION: Final = re.compile(r"^## (.+)$", re.MULTILINE)
_BLOCK: Final = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Example:
    section: str
    language: str
    """`python`, `sh` or `js`."""
    text: str
    number: int
    """Among those of its section and language, from 1."""

    @property
    def name(self) -> str:
        return f"{self.section} {self.language} {self.number}"


def read_examples(language: str) -> list[Example]:
    """Return the code blocks of a language, in order."""
    _, *parts = _SECTION.split(PAGE.read_text("utf-8"))
    found = []
    for section, text in zip(parts[::2], parts[1::2], strict=True):
        blocks = [block for kind, block in _BLOCK.findall(text) if kind == language]
        found += [
            Example(section=section, language=language, text=block, number=number)
            for number, block in enumerate(blocks, 1)
        ]
    return found
