"""Responses of polls of completed tasks, from one point read to the bytes, without a model in between.

Most stored tasks are completed, and the presenter's models take five times as long as the read. The JSON is the same,
byte for byte: a test compares both for generated tasks. All other tasks are the presenter's. What tasks of the same
parameters share is written once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from json.encoder import encode_basestring as quote
from typing import Any, Final, NamedTuple

from broker.api.http.responses import CachedResponse, encode_text, to_json
from broker.clock import iso
from broker.orders import USD_DIGITS
from broker.presenter import TaskPresenter, image_links
from storage.ids import TASK_ID, provider_of
from storage.sql.database import Database

_TASK_COLUMNS: Final = (
    *("version", "prompt", "model", "mode", "aspect_ratio", "resolution", "params", "texts", "provider", "attempt"),
    *("cost", "cost_usd", "created_at", "updated_at", "ended_at", "pinned_at"),
)
_IMAGE_COLUMNS: Final = ("name", "media_type", "size", "width", "height", "sha256")
_READ: Final = f"""SELECT {", ".join(f"t.{name}" for name in _TASK_COLUMNS)},
        {", ".join(f"i.{name}" for name in _IMAGE_COLUMNS)}
    FROM tasks t LEFT JOIN images i ON i.owner = t.id AND i.kind = 'result'
    WHERE t.id = :id AND t.state = 'succeeded' ORDER BY i.position"""
_DONE: Final = '{"stage":"done","position":null,"providerState":null,"percent":null,"etaSeconds":null}'
_KNOWN_PARAMS: Final = 1024
"""There are few models, sizes and providers."""

Row = Sequence[Any]


@dataclass(frozen=True)
class CompletedTask:
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
        def provider_names(account: str) -> tuple[str, str]:
            """Return the JSON of the provider of an account, and of its unit."""
            provider = provider_of(account)
            return quote(provider), _or_null(unit_of(provider))

        self._shared, self._provider_names = shared, provider_names

    def load(self, task_id: str) -> CompletedTask | None:
        """Return a completed task, or None if there is none, or the database does not answer at once."""
        rows = self._database.fetch_at_once(_READ, id=task_id) if TASK_ID.fullmatch(task_id) else None
        if not rows:
            return None
        body = encode_text(self._document(task_id, rows))
        return CompletedTask(rows[0][0], CachedResponse.from_body(body, ended=True))

    def _document(self, task_id: str, rows: Sequence[Row]) -> str:
        _, prompt, model, mode, ratio, resolution, params, texts, account, attempt, *rest = rows[0]
        cost, cost_usd, created_at, updated_at, ended_at, pinned_at = rest[:6]
        shared, (provider, unit) = self._shared(model, mode, ratio, resolution), self._provider_names(account)
        prompt, updated = quote(prompt), iso(updated_at)
        url, images = "null", ""
        if rest[6] is not None:
            documents = [_image(row[16:], shared.size) for row in rows]
            url, images = documents[0][0], ",".join([document for _, document in documents])
        ended = updated if ended_at is None or ended_at == updated_at else iso(ended_at)
        is_kept = ended_at is None or pinned_at is not None
        expires = "null" if is_kept else f'"{iso(ended_at + self._retention)}"'
        generation = (
            f'{{"id":"{task_id}",{shared.generation},"prompt":{prompt},"url":{url},"timestamp":"{ended}",'
            f'"aspectRatio":{shared.ratio},"steps":{_steps(params)}}}'
            if images
            else "null"
        )
        charged = "null"
        if cost is not None:
            usd = "null" if cost_usd is None else repr(round(cost_usd, USD_DIGITS))
            charged = f'{{"amount":{cost!r},"unit":{unit},"usd":{usd}}}'
        return (
            f'{{"success":true,"data":{{"id":"{task_id}","status":"completed","prompt":{prompt},{shared.task},'
            f'"result":{url},"results":[{images}],"texts":{_compact(texts)},"error":null,"errorDetail":null,'
            f'"progress":{_DONE},"provider":{provider},"attempts":{attempt},"cost":{charged},'
            f'"createdAt":"{iso(created_at)}","updatedAt":"{updated}","expiresAt":{expires},"generation":{generation}}}}}'
        )


def _image(columns: Row, requested: str) -> tuple[str, str]:
    """Return the address and the document of a result. requested: the JSON of that size."""
    name, media_type, size, width, height, sha256 = columns
    path, thumbnail = image_links(name, "result", media_type, width, height)
    url, actual = quote(path), _size(width, height)
    mismatch = "true" if requested not in {"null", actual} else "false"
    return url, (
        f'{{"url":{url},"width":{width},"height":{height},"bytes":{size},"mediaType":{quote(media_type)},'
        f'"sha256":"{sha256}","thumbnail":{_or_null(thumbnail)},"requested":{requested},"actual":{actual},'
        f'"mismatch":{mismatch}}}'
    )


def _or_null(text: str | None) -> str:
    return "null" if text is None else quote(text)


def _size(width: int, height: int) -> str:
    return f'{{"width":{width},"height":{height}}}'


def _compact(column: str) -> str:
    return column if column == "[]" else to_json(json.loads(column)).decode()


def _steps(params: str) -> str:
    steps = None if params == "{}" else json.loads(params).get("steps")
    return "null" if steps is None else f"{steps}"
