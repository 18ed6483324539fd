"""The fields of a native order: their spellings, and how forms and JSON become one validated model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from annotated_types import Ge, Le
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.datastructures import FormData, UploadFile

from broker.api.native.schemas import MAX_TEXT, OrderForm, OrderJson
from broker.errors import ApiError, FieldError
from broker.orders import DataUriReference, ImageParams, OrderRequest, ReferenceSource, UploadedReference, UrlReference

_SPELLINGS: Final[dict[str, tuple[str, ...]]] = {
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
    "images": ("image", "file", "files"),
    "imageUrls": ("image_urls",),
}
_NAMES: Final = {spelling: name for name, others in _SPELLINGS.items() for spelling in (name, *others)}
_LISTS: Final = frozenset({"images", "imageUrls"})
_CODES: Final = {"prompt": "invalid_prompt", "images": "invalid_image", "imageUrls": "invalid_image"}
_INTEGERS: Final = frozenset({"numberOfImages", "steps", "seed"})
_FLAGS: Final = {"true": True, "1": True, "false": False, "0": False}
_LIST_RULES: Final = {
    "images": "must be data URIs: send data:image/png;base64,<data>",
    "imageUrls": "must be a list of web addresses",
}

CHUNK_BYTES: Final = 256 * 1024
_MAX_IGNORED: Final = 20


@dataclass
class _FilePart:
    """The bytes of an uploaded file, from its beginning in each iteration.

    A class, because a generator that is left half-way has to be closed by its caller.
    """

    file: UploadFile
    _begun: bool = False

    def __aiter__(self) -> _FilePart:
        self._begun = False
        return self

    async def __anext__(self) -> bytes:
        if not self._begun:
            await self.file.seek(0)
            self._begun = True
        chunk = await self.file.read(CHUNK_BYTES)
        if not chunk:
            raise StopAsyncIteration
        return chunk


@dataclass(frozen=True, kw_only=True)
class OrderParams:
    """The parsed fields of a request."""

    fields: OrderJson | OrderForm
    unknown: tuple[str, ...]
    """Names of fields that are not known, to be listed as ignored."""

    @property
    def dry_run(self) -> bool:
        return bool(self.fields.dry_run)

    def to_request(self, idempotency_key: str | None, retry_count: int | None = None) -> OrderRequest:
        """Return the order request; the catalog checks its values."""
        fields = self.fields
        return OrderRequest(
            params=ImageParams(
                prompt=fields.prompt,
                model=_strip_blanks(fields.model) or "",
                aspect_ratio=_strip_blanks(fields.aspect_ratio),
                resolution=_strip_blanks(fields.resolution),
                output_format=_strip_blanks(fields.output_format),
                steps=fields.steps,
                seed=fields.seed,
            ),
            mode=_strip_blanks(fields.mode),
            count=1 if fields.number_of_images is None else fields.number_of_images,
            sources=self._sources(),
            callback_url=_strip_blanks(fields.callback_url),
            idempotency_key=idempotency_key,
            retry_count=retry_count,
        )

    def ignored_fields(self, by_provider: Iterable[str]) -> list[str]:
        """Return the names of fields that the provider does not use or that are not known."""
        unknown = [name[:64] for name in self.unknown if name.isprintable()]
        return list(dict.fromkeys([*by_provider, *unknown[:_MAX_IGNORED]]))

    def _sources(self) -> tuple[ReferenceSource, ...]:
        """Return the reference images in order; those in the request before those at an address."""
        match self.fields:
            case OrderForm(image=files):
                sent: list[ReferenceSource] = [UploadedReference(chunks=_FilePart(file)) for file in files]
            case OrderJson(images=uris):
                sent = [DataUriReference(text=uri) for uri in uris or ()]
        return (*sent, *(UrlReference(url=url) for url in self.fields.image_urls or ()))


def read_json_order(document: Mapping[str, Any]) -> OrderParams:
    """Raises `ApiError` naming the fields that have a wrong type or range."""
    return _read_order(OrderJson, _json_values(document))


def read_form_order(form: FormData) -> OrderParams:
    """Raises `ApiError` like `read_json_order`. Numbers and booleans are written out in a form."""
    values = ((key, _form_value(_NAMES.get(key), value)) for key, value in form.multi_items())
    return _read_order(OrderForm, values)


def _read_order(model: type[OrderJson | OrderForm], values: Iterable[tuple[str, Any]]) -> OrderParams:
    """Fold values of any spelling into the fields of the model. A missing prompt is an empty one."""
    folded: dict[str, Any] = {}
    unknown = []
    for key, value in values:
        name = _NAMES.get(key)
        if name is None:
            unknown.append(key)
        elif value is None or value == "":  # an empty field of a form was not filled in
            continue
        elif name in _LISTS:
            folded.setdefault(name, []).append(value)
        elif folded.setdefault(name, value) != value or type(folded[name]) is not type(value):
            raise _field_error(name, "was given more than once: send one value")
    try:
        return OrderParams(fields=model.model_validate({"prompt": "", **folded}), unknown=tuple(unknown))
    except ValidationError as error:
        raise _api_error(error) from error


def _json_values(document: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the values by key, the entries of a list one by one."""
    for key, value in document.items():
        name = _NAMES.get(key)
        if name not in _LISTS or not isinstance(value, list):
            yield key, value
            continue
        if "" in value or None in value:
            raise _field_error(name, "must not have empty entries")  # dropped, it would be another order
        yield from ((key, entry) for entry in value)


def _form_value(name: str | None, value: str | UploadFile) -> Any:
    """Check that files are where files belong, and read numbers and booleans. An empty file field is absent."""
    if name is None:
        return value
    if isinstance(value, UploadFile):
        if name != "images":
            raise _field_error(name, "must be text, not a file")
        return value if value.filename or value.size else None
    if name == "images" and value:
        raise ApiError("invalid_image", "image must be sent as a file: give the part a file name.", field="image")
    if name in _INTEGERS and re.fullmatch(r"[+-]?[0-9]{1,20}", value.strip()):
        return int(value)
    if name == "dryRun":
        return _FLAGS.get(value.strip().lower(), value)
    return value


def _strip_blanks(text: str | None) -> str | None:
    """Return text without the blanks around it; None if there are only blanks."""
    return (text or "").strip() or None


# -- errors


def _api_error(error: ValidationError) -> ApiError:
    """Return the error of the API that names each wrong field once, with a sentence of its own."""
    messages: dict[str, str] = {}
    for one in error.errors(include_url=False):
        name = str(one["loc"][0])
        messages.setdefault(name, f"{name} {_rule_text(name, one)}.")
    details = [FieldError(field=name, message=message) for name, message in messages.items()]
    first = details[0]
    return ApiError(_CODES.get(first.field, "invalid_request"), first.message, field=first.field, details=details)


def _rule_text(name: str, error: ErrorDetails) -> str:
    if name in _LIST_RULES:
        return _LIST_RULES[name]
    kind = error["type"]
    if kind == "too_long":
        return f"is longer than {MAX_TEXT:,} characters"
    if kind in {"greater_than_equal", "less_than_equal"}:
        return f"must be from {_bound(name, Ge)} to {_bound(name, Le)}"
    if kind.startswith("int"):
        return "must be a whole number"
    return "must be true or false" if kind.startswith("bool") else "must be text"


def _bound(name: str, kind: type[Ge] | type[Le]) -> Any:
    """Return the least or largest value that the model declares for a field."""
    (field,) = (field for field in OrderJson.model_fields.values() if field.alias == name)
    return next(one.ge if isinstance(one, Ge) else one.le for one in field.metadata if isinstance(one, kind))


def _field_error(name: str, rule: str) -> ApiError:
    return ApiError(_CODES.get(name, "invalid_request"), f"{name} {rule}.", field=name)
