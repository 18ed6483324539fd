"""The fields of a native order: their names and aliases, and how a value of each is read from a form or from JSON."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from starlette.datastructures import FormData, UploadFile

from broker.errors import Refusal
from broker.orders import DataUriReference, OrderRequest, ReferenceSource, UploadedReference, UrlReference

_ALIASES: Final[dict[str, tuple[str, ...]]] = {
    "prompt": (),
    "model": (),
    "mode": (),
    "aspectRatio": ("aspect_ratio",),
    "resolution": (),
    "outputFormat": ("output_format",),
    "numberOfImages": ("number_of_images", "n"),
    "steps": (),
    "seed": (),
    "callbackUrl": ("callback_url",),
    "dryRun": ("dry_run",),
    "image": ("images", "file", "files"),
    "imageUrls": ("image_urls",),
}
_NAMES: Final = {alias: name for name, aliases in _ALIASES.items() for alias in (name, *aliases)}
_MANY: Final = frozenset({"image", "imageUrls"})
_CODES: Final = {"prompt": "invalid_prompt", "image": "invalid_image", "imageUrls": "invalid_image"}
_TRUTHS: Final = {"true": True, "1": True, "false": False, "0": False}

MOST_TEXT: Final = 256 * 1024
"""Characters of one field; the catalog then knows the model's own limit."""
MOST_STEPS: Final = 1000
SAFE_INTEGER: Final = 2**53 - 1
"""What every JSON parser reads exactly."""
PIECE: Final = 256 * 1024
_MOST_UNKNOWN: Final = 20


@dataclass
class _Part:
    """The bytes of an uploaded file, from its beginning each time.

    A class: a generator that is left in the middle must be closed by somebody.
    """

    file: UploadFile
    _begun: bool = False

    def __aiter__(self) -> _Part:
        self._begun = False
        return self

    async def __anext__(self) -> bytes:
        if not self._begun:
            await self.file.seek(0)
            self._begun = True
        chunk = await self.file.read(PIECE)
        if not chunk:
            raise StopAsyncIteration
        return chunk


@dataclass(frozen=True)
class Given:
    """What a request said, under our names. unknown: fields that we do not know, to be reported as ignored."""

    values: dict[str, list[Any]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    written: bool = False
    """Whether numbers and truths are written out, as in a form."""

    @classmethod
    def in_object(cls, document: Mapping[str, Any]) -> Given:
        given = cls()
        for key, value in document.items():
            name = _NAMES.get(key)
            listed = name in _MANY and isinstance(value, list)
            if name and listed and ("" in value or None in value):
                raise _wrong(name, "must not have empty entries")  # dropped, the order would be another one
            for one in value if listed else [value]:
                given._add(key, name, one)
        return given

    @classmethod
    def in_form(cls, form: FormData) -> Given:
        given = cls(written=True)
        for key, value in form.multi_items():
            name = _NAMES.get(key)
            given._add(key, name, value if name is None else _proper(name, value))
        return given

    def _add(self, key: str, name: str | None, value: Any) -> None:
        if name is None:
            self.unknown.append(key)
        elif value is not None and value != "":  # an empty field of a form is one that was not filled in
            self.values.setdefault(name, []).append(value)

    # -- one value each

    def text(self, name: str) -> str | None:
        value = self._single(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise _wrong(name, "must be text")
        if len(value) > MOST_TEXT:
            raise _wrong(name, f"is longer than {MOST_TEXT:,} characters")
        return value

    def word(self, name: str) -> str | None:
        """Text without the blanks around it; only blanks are nothing."""
        return (self.text(name) or "").strip() or None

    def integer(self, name: str, least: int, most: int) -> int | None:
        value = self._single(name)
        if value is None:
            return None
        if self.written and isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,20}", value.strip()):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise _wrong(name, "must be a whole number")
        if not least <= value <= most:
            raise _wrong(name, f"must be from {least} to {most}")
        return value

    def truth(self, name: str) -> bool:
        value = self._single(name)
        if self.written and isinstance(value, str):
            value = _TRUTHS.get(value.strip().lower(), value)
        if value is None or isinstance(value, bool):
            return bool(value)
        raise _wrong(name, "must be true or false")

    def _single(self, name: str) -> Any:
        values = self.values.get(name, [])
        if any(value != values[0] or type(value) is not type(values[0]) for value in values[1:]):
            raise _wrong(name, "was given more than once: send one value")
        return values[0] if values else None

    # -- the whole

    def sources(self) -> tuple[ReferenceSource, ...]:
        """The reference images, in their order; those that came along before those to be fetched."""
        return (
            *(_sent(value) for value in self.values.get("image", [])),
            *(_linked(value) for value in self.values.get("imageUrls", [])),
        )

    def request(self, idempotency_key: str | None, retry_count: int | None = None) -> OrderRequest:
        """Raises `Refusal` naming the first field that is no such value; the catalog looks at the meaning."""
        count = self.integer("numberOfImages", 1, 6)
        return OrderRequest(
            prompt=self.text("prompt") or "",
            model=self.word("model"),
            mode=self.word("mode"),
            aspect_ratio=self.word("aspectRatio"),
            resolution=self.word("resolution"),
            output_format=self.word("outputFormat"),
            count=1 if count is None else count,
            steps=self.integer("steps", 1, MOST_STEPS),
            seed=self.integer("seed", -SAFE_INTEGER, SAFE_INTEGER),
            sources=self.sources(),
            callback_url=self.word("callbackUrl"),
            idempotency_key=idempotency_key,
            retry_count=retry_count,
        )

    def ignored(self, by_provider: Iterable[str]) -> list[str]:
        """What nobody used: by the provider, or because we know no such field."""
        unknown = [name[:64] for name in self.unknown if name.isprintable()]
        return list(dict.fromkeys([*by_provider, *unknown[:_MOST_UNKNOWN]]))


def _proper(name: str, value: str | UploadFile) -> str | UploadFile | None:
    """Files where files belong, text elsewhere. A file field nobody chose a file for counts as absent."""
    if name != "image" and isinstance(value, UploadFile):
        raise _wrong(name, "must be text, not a file")
    if name == "image" and isinstance(value, str) and value:
        raise _wrong(name, "must be sent as a file: give the part a file name")
    if isinstance(value, UploadFile) and not value.filename and not value.size:
        return None
    return value


def _sent(value: Any) -> ReferenceSource:
    if isinstance(value, UploadFile):
        return UploadedReference(chunks=_Part(value))
    if isinstance(value, str):
        return DataUriReference(text=value)
    raise _wrong("image", "must be a data URI: send data:image/png;base64,…")


def _linked(value: Any) -> ReferenceSource:
    if isinstance(value, str) and len(value) <= MOST_TEXT:
        return UrlReference(url=value)
    raise _wrong("imageUrls", "must be a list of web addresses")


def _wrong(name: str, what: str) -> Refusal:
    return Refusal(_CODES.get(name, "invalid_request"), f"{name} {what}.", field=name)
