"""Responses of polls of completed tasks, from one point read to the bytes, without a model in between.

Most stored tasks are completed, and the presenter's models take five times as long as the read. The JSON is the same,
byte for byte: a test compares both for generated tasks. All other tasks are the presenter's. What tasks of the same
parameters share is written once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from json.encoder import encode_basestring as quote
from typing import Any, Final, NamedTuple

from broker.api.http.responses import CachedResponse, encode_text, to_json
from broker.clock import iso
from broker.orders import USD_DIGITS
from broker.presenter import TaskPresenter, image_links
from storage.ids import provider_of
from storage.sql.database import Database

_TASK_COLUMNS: Final = (
    *("version", "prompt", "model", "mode", "aspect_ratio", "resolution", "params", "texts", "provider", "attempt"),
    *("cost", "cost_usd", "created_at", "updated_at", "ended_at", "pinned_at"),
)
_FIRST_IMAGE_COLUMN: Final = len(_TASK_COLUMNS)
_IMAGE_COLUMNS: Final = ("name", "media_type", "size", "width", "height", "sha256")
_READ: Final = f"""SELECT {", ".join(f"t.{name}" for name in _TASK_COLUMNS)},
        {", ".join(f"i.{name}" for name in _IMAGE_COLUMNS)}
    FROM tasks t LEFT JOIN images i ON i.owner = t.id AND i.kind = 'result'
    WHERE t.id = :id AND t.state = 'succeeded' ORDER BY i.position"""
_DONE: Final = '{"stage":"done","position":null,"providerState":null,"percent":null,"etaSeconds":null}'
_KNOWN_PARAMS: Final = 1024
"""There are few models, sizes and providers."""

Row = Sequence[Any]


class CompletedTask(NamedTuple):
    """version: of the row. response: in every language, because it has no sentence."""

    version: int
    response: CachedResponse


class _Shared(NamedTuple):
    """Parts of the JSON of all tasks with the same parameters.

    generation: its beginning, up to the prompt. size: requested, or null.
    """

    task: str
    generation: str
    ratio: str
    size: str


class _Measured(NamedTuple):
    """Parts of the JSON of all results of the same type and size, around their names, bytes and hashes."""

    folder: str
    size: str
    media_type: str
    thumbnail: str | None
    """Follows the address of the image; None if it has no thumbnail."""
    sizes: str


class CompletedTasks:
    """Reads completed tasks where the database answers at once."""

    def __init__(self, *, database: Database, presenter: TaskPresenter) -> None:
        self._database = database
        self._retention = presenter.retention
        catalog, unit_of = presenter.catalog, presenter.unit_of

        @lru_cache(_KNOWN_PARAMS)
        def shared(model: str, mode: str, ratio: str | None, resolution: str | None) -> _Shared:
            size = catalog.pixel_size(model, ratio, resolution)
            names = f'"mode":{quote(mode)},"model":{quote(model)}'
            return _Shared(
                f'"model":{quote(model)},"mode":{quote(mode)},"aspectRatio":{_or_null(ratio)},'
                f'"resolution":{_or_null(resolution)}',
                f'"type":"image",{names}',
                _or_null(ratio),
                "null" if size is None else _size(size.width, size.height),
            )

        @lru_cache(_KNOWN_PARAMS)
        def charged(account: str, cost: float | None, cost_usd: float | None) -> tuple[str, str]:
            """Return the JSON of the provider of an account, and of what it charged."""
            provider = provider_of(account)
            if cost is None:
                return quote(provider), "null"
            usd = "null" if cost_usd is None else repr(round(cost_usd, USD_DIGITS))
            return quote(provider), f'{{"amount":{cost!r},"unit":{_or_null(unit_of(provider))},"usd":{usd}}}'

        self._shared, self._charged = shared, charged

    def load(self, task_id: str) -> CompletedTask | None:
        """Return a completed task, or None if there is none, or the database does not answer at once."""
        rows = self._database.fetch_at_once(_READ, id=task_id)
        if not rows:
            return None
        body = encode_text(self._document(task_id, rows))
        return CompletedTask(rows[0][0], CachedResponse.from_body(body, ended=True))

    def _document(self, task_id: str, rows: Sequence[Row]) -> str:
        _, prompt, model, mode, ratio, resolution, params, texts, account, attempt, *rest = rows[0]
        cost, cost_usd, created_at, updated_at, ended_at, pinned_at, *image = rest
        task, begin, ratio, requested = self._shared(model, mode, ratio, resolution)
        provider, charged = self._charged(account, cost, cost_usd)
        prompt, updated = quote(prompt), iso(updated_at)
        ended = updated if ended_at is None or ended_at == updated_at else iso(ended_at)
        url, images, generation = "null", "", "null"
        if image[0] is not None:
            url, images = _image(requested, image)
            if len(rows) > 1:
                images = ",".join([images, *[_image(requested, row[_FIRST_IMAGE_COLUMN:])[1] for row in rows[1:]]])
            generation = (
                f'{{"id":"{task_id}",{begin},"prompt":{prompt},"url":{url},"timestamp":"{ended}",'
                f'"aspectRatio":{ratio},"steps":{"null" if params == "{}" else _steps(params)}}}'
            )
        is_kept = ended_at is None or pinned_at is not None
        expires = "null" if is_kept else f'"{iso(ended_at + self._retention)}"'
        return (
            f'{{"success":true,"data":{{"id":"{task_id}","status":"completed","prompt":{prompt},{task},'
            f'"result":{url},"results":[{images}],"texts":{texts if texts == "[]" else _compact(texts)},"error":null,'
            f'"errorDetail":null,"progress":{_DONE},"provider":{provider},"attempts":{attempt},"cost":{charged},'
            f'"createdAt":"{iso(created_at)}","updatedAt":"{updated}","expiresAt":{expires},"generation":{generation}}}}}'
        )


def _image(requested: str, columns: Row) -> tuple[str, str]:
    """Return the address and the document of a result. requested: the JSON of that size."""
    name, media_type, size, width, height, sha256 = columns
    folder, of_size, of_type, of_thumbnail, sizes = _measured(media_type, width, height, requested)
    url = quote(folder + name)
    thumbnail = "null" if of_thumbnail is None else f'{url[:-1]}{of_thumbnail}"'
    return url, (
        f'{{"url":{url},{of_size},"bytes":{size},"mediaType":{of_type},"sha256":"{sha256}","thumbnail":{thumbnail},{sizes}}}'
    )


@lru_cache(_KNOWN_PARAMS)
def _measured(media_type: str, width: int, height: int, requested: str) -> _Measured:
    folder, thumbnail = image_links("", "result", media_type, width, height)
    actual = _size(width, height)
    mismatch = "true" if requested not in {"null", actual} else "false"
    return _Measured(
        folder,
        f'"width":{width},"height":{height}',
        quote(media_type),
        None if thumbnail is None else thumbnail.removeprefix(folder),
        f'"requested":{requested},"actual":{actual},"mismatch":{mismatch}',
    )


def _or_null(text: str | None) -> str:
    return "null" if text is None else quote(text)


def _size(width: int, height: int) -> str:
    return f'{{"width":{width},"height":{height}}}'


def _compact(column: str) -> str:
    return to_json(json.loads(column)).decode()


def _steps(params: str) -> str:
    steps = json.loads(params).get("steps")
    return "null" if steps is None else f"{steps}"
