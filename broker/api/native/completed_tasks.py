"""Responses of polls of completed tasks, from one point read to the bytes, without a model in between.

Most stored tasks are completed, and the presenter's models take three times as long as the read. The JSON is the
same, byte for byte: a test compares both for generated tasks. All other tasks are the presenter's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring as quote
from typing import Any, Final

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
_IMAGE_COLUMNS: Final = ("name", "kind", "media_type", "size", "width", "height", "sha256")
_READ: Final = f"""SELECT {", ".join(f"t.{name}" for name in _TASK_COLUMNS)},
        {", ".join(f"i.{name}" for name in _IMAGE_COLUMNS)}
    FROM tasks t LEFT JOIN images i ON i.owner = t.id AND i.kind = 'result'
    WHERE t.id = :id AND t.state = 'succeeded' ORDER BY i.position"""
_DONE: Final = '{"stage":"done","position":null,"providerState":null,"percent":null,"etaSeconds":null}'

Row = Sequence[Any]


@dataclass(frozen=True)
class CompletedTask:
    """version: of the row. response: in every language, because it has no sentence."""

    version: int
    response: CachedResponse


@dataclass(frozen=True, kw_only=True)
class CompletedTasks:
    """Reads completed tasks where the database answers at once."""

    database: Database
    presenter: TaskPresenter

    def load(self, task_id: str) -> CompletedTask | None:
        """Return a completed task, or None if there is none, or the database does not answer at once."""
        rows = self.database.fetch_at_once(_READ, id=task_id) if TASK_ID.fullmatch(task_id) else None
        if not rows:
            return None
        body = encode_text(f'{{"success":true,"data":{self._task(task_id, rows)}}}')
        return CompletedTask(rows[0][0], CachedResponse.from_body(body, ended=True))

    def _task(self, task_id: str, rows: Sequence[Row]) -> str:
        _, prompt, model, mode, ratio, resolution, params, texts, provider, attempt, *rest = rows[0][:16]
        cost, cost_usd, created_at, updated_at, ended_at, pinned_at = rest
        size = self.presenter.catalog.pixel_size(model, ratio, resolution)
        requested = "null" if size is None else f'{{"width":{size.width},"height":{size.height}}}'
        images = [_image(row[16:], requested) for row in rows if row[16] is not None]
        prompt, model, mode, ratio = quote(prompt), quote(model), quote(mode), _or_null(ratio)
        url = images[0][0] if images else "null"
        updated = _moment(updated_at)
        ended = updated if ended_at is None or ended_at == updated_at else _moment(ended_at)
        is_kept = ended_at is None or pinned_at is not None
        expires = "null" if is_kept else _moment(ended_at + self.presenter.retention)
        generation = (
            f'{{"id":"{task_id}","type":"image","mode":{mode},"model":{model},"prompt":{prompt},"url":{url},'
            f'"timestamp":{ended},"aspectRatio":{ratio},"steps":{_steps(params)}}}'
            if images
            else "null"
        )
        return (
            f'{{"id":"{task_id}","status":"completed","prompt":{prompt},"model":{model},"mode":{mode},'
            f'"aspectRatio":{ratio},"resolution":{_or_null(resolution)},"result":{url},'
            f'"results":[{",".join(document for _, document in images)}],"texts":{_compact(texts)},"error":null,'
            f'"errorDetail":null,"progress":{_DONE},"provider":{quote(provider_of(provider))},"attempts":{attempt},'
            f'"cost":{self._cost(provider, cost, cost_usd)},"createdAt":{_moment(created_at)},"updatedAt":{updated},'
            f'"expiresAt":{expires},"generation":{generation}}}'
        )

    def _cost(self, provider: str, cost: float | None, cost_usd: float | None) -> str:
        if cost is None:
            return "null"
        unit, usd = self.presenter.unit_of(provider_of(provider)), "null"
        if cost_usd is not None:
            usd = repr(round(cost_usd, USD_DIGITS))
        return f'{{"amount":{cost!r},"unit":{_or_null(unit)},"usd":{usd}}}'


def _image(columns: Row, requested: str) -> tuple[str, str]:
    """Return the address and the document of a result."""
    name, kind, media_type, size, width, height, sha256 = columns
    path, thumbnail = image_links(name, kind, media_type, width, height)
    url, actual = quote(path), f'{{"width":{width},"height":{height}}}'
    mismatch = "true" if requested not in {"null", actual} else "false"
    return url, (
        f'{{"url":{url},"width":{width},"height":{height},"bytes":{size},"mediaType":{quote(media_type)},'
        f'"sha256":"{sha256}","thumbnail":{_or_null(thumbnail)},"requested":{requested},"actual":{actual},'
        f'"mismatch":{mismatch}}}'
    )


def _or_null(text: str | None) -> str:
    return "null" if text is None else quote(text)


def _moment(moment: float) -> str:
    return f'"{iso(moment)}"'


def _compact(column: str) -> str:
    return column if column == "[]" else to_json(json.loads(column)).decode()


def _steps(params: str) -> str:
    steps = None if params == "{}" else json.loads(params).get("steps")
    return "null" if steps is None else f"{steps}"
