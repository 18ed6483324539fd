"""An account whose content is canaries: a word in every column that an admin must not read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from broker.accounts.secret_texts import digest_of, new_secret
from storage.accounts.api_keys import ApiKey
from storage.accounts.users import User
from storage.attempts import Attempt
from storage.batches import StoredBatch
from storage.callbacks import StoredCallback
from storage.deliveries import Delivery, DeliveryAttempt, DeliveryStatus
from storage.ids import new_api_key_id, new_image_name, new_task_id, new_user_id, reference_owner
from storage.sql.rows import insert_row
from storage.states import TaskState
from storage.tasks import Task
from tests.support.api import NEVER, ApiBroker, png
from tests.support.brokers import RunningBroker
from webhooks.signatures.base import Proof
from webhooks.verification import Evidence

WORD: Final = "canary"
NAME: Final = "=cmd|' /C calc'!A0 <script>x</script>\x1b[31m\x1b]0;owned\x07\x9b31m\u202e"
"""Of the user; a registration refuses such a name, a database may have it all the same."""
SHOWN_NAME: Final = "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in NAME)
CONTROLS: Final = ("\x1b", "\x07")
"""In no output, JSON included."""
TERMINAL_CONTROLS: Final = ("\x9b", "\u202e")
"""In no output of a command."""

_TEXT: Final = f"{WORD} <script>x</script>\x1b[31m =cmd"
_URL: Final = f"https://{WORD}.example/{WORD}.png?sig={WORD}"
TASK_CONTENT: Final[dict[str, Any]] = {
    "prompt": _TEXT,
    "aspect_ratio": WORD,
    "params": {WORD: _TEXT},
    "references": ({"blob": f"refs_{WORD}", "sha256": WORD, "name": WORD},),
    "turns": ({"text": _TEXT},),
    "origin": {WORD: _TEXT, "input": {WORD: WORD}},
    "job_id": f"job-{WORD}",
    "outputs": (_URL,),
    "texts": (_TEXT,),
    "turn": _TEXT,
    "callback_url": _URL,
    "error_detail": _TEXT,
    "provider_code": WORD,
    "provider_state": WORD,
}
"""Columns with content. `test_every_column_of_a_task_is_content_or_not` has the others."""


@dataclass(frozen=True, kw_only=True)
class Planted:
    """What was stored."""

    owner: str
    tasks: tuple[Task, ...]
    callbacks: tuple[str, ...]
    deliveries: tuple[str, ...]
    image_names: tuple[str, ...]

    @property
    def secrets(self) -> set[str]:
        """Texts that open or tell something of the content."""
        return {WORD, *self.image_names, *(one.id for one in self.tasks), *(one.batch for one in self.tasks)}


async def add_user(broker: ApiBroker | RunningBroker, name: str = NAME, **changes: Any) -> User:
    now = broker.services.clock.now()
    user = User(id=new_user_id(), name=name, name_key=name, password_hash="", created_at=now, updated_at=now, **changes)
    await broker.services.database.transact(insert_row("users", user))
    return user


async def add_key(broker: ApiBroker | RunningBroker, owner: str | None = None, name: str = NAME) -> tuple[str, ApiKey]:
    """Add an API key of a user, or one that is its own owner; return its secret, and its row."""
    secret, key_id = new_secret("api_key"), new_api_key_id()
    key = ApiKey(
        id=key_id,
        digest=digest_of(secret),
        prefix=secret[:8],
        name=name,
        owner=owner or key_id,
        created_at=broker.services.clock.now(),
    )
    await broker.services.database.transact(insert_row("api_keys", key))
    return secret, key


async def plant_content(broker: ApiBroker, owner: str, *, first: int = 0) -> Planted:
    """Store tasks in every state, with attempts, callbacks, webhooks and images, all with canaries.

    first: number of the first callback and webhook.
    """
    tasks, images = [await _plant_task(broker, owner, state) for state in TaskState], list[str]()
    done = next(task for task in tasks if task.state == TaskState.SUCCEEDED)
    for place, kind in ((done.id, "result"), (reference_owner(done.batch), "reference")):
        name = new_image_name("generated" if kind == "result" else kind, done.created_at, "png")
        images.append((await broker.add_image(place, png(), kind=kind, name=name)).name)
        belongs = "UPDATE images SET caller = :caller WHERE name = :name"
        await broker.services.database.execute(belongs, caller=owner, name=name)
    now = broker.services.clock.now()
    batch = StoredBatch(
        id=done.batch, caller=owner, dialect="gemini", name=WORD, model=WORD, callback_urls=(_URL,),
        metadata={WORD: WORD}, created_at=now, updated_at=now,
    )  # fmt: skip
    callbacks = [_callback(now, number, task.id) for number, task in enumerate(tasks, first)]
    # of no task, and of one that was purged
    callbacks += [_callback(now, first + 100, None), _callback(now, first + 101, new_task_id(now))]
    deliveries = [_delivery(now, number, task) for number, task in enumerate(tasks, first)]
    tries = [DeliveryAttempt(delivery_id=one.id, number=1, at=now, error=WORD, milliseconds=1) for one in deliveries]
    rows: list[tuple[str, Sequence[object]]] = [
        *(("batches", [batch]), ("callbacks", callbacks), ("deliveries", deliveries), ("delivery_attempts", tries))
    ]
    await broker.services.database.transact(*(insert_row(table, row) for table, some in rows for row in some))
    return Planted(
        owner=owner,
        tasks=tuple(tasks),
        callbacks=tuple(one.id for one in callbacks),
        deliveries=tuple(one.id for one in deliveries),
        image_names=tuple(images),
    )


async def _plant_task(broker: ApiBroker, owner: str, state: TaskState) -> Task:
    now = broker.services.clock.now()
    is_ended = state in {TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELED, TaskState.EXPIRED}
    ends = {"ended_at": now, "error_code": "safety_input" if state == TaskState.FAILED else None} if is_ended else {}
    task = await broker.add_task(id=new_task_id(now), caller=owner, state=state, **ends, **TASK_CONTENT)
    attempt = Attempt(
        task_id=task.id, number=1, provider="kie", key_id="key", job_id=f"job-{WORD}", sent_at=now, outcome="failed",
        code="safety_input", provider_code=WORD, billed="yes", price=4.0, usd_per_unit=0.005, cost=4.0,
        duplicate_result=json.dumps({"job_id": WORD, "outputs": [_URL]}),
    )  # fmt: skip
    await broker.services.database.transact(insert_row("attempts", attempt))
    return task


def _callback(now: float, number: int, task_id: str | None) -> StoredCallback:
    """Return a callback of kie.ai about a failure, whose message repeats the prompt."""
    body = {"code": 501, "msg": _TEXT, "data": {"taskId": f"job-{WORD}", "state": "fail", "failMsg": _TEXT}}
    evidence = Evidence(token=Proof.BODY_VERIFIED, known=task_id is not None)
    return StoredCallback(
        id=f"callback_{number:024x}", provider="kie", task_id=task_id, attempt=1,
        verification="accept" if task_id else "unknown", status=200, reason="its token or signature is valid",
        received_at=now, processed_at=now, headers=json.dumps({"x-webhook-id": WORD}),
        query=json.dumps({"task": task_id or WORD, "attempt": "1"}), body=json.dumps(body),
        evidence=evidence.to_json(),
    )  # fmt: skip


def _delivery(now: float, number: int, task: Task) -> Delivery:
    return Delivery(
        id=f"evt_{number:032x}", caller=task.caller, task_id=task.id, type="task.failed", url=_URL,
        host=f"{WORD}.example", body=json.dumps({"prompt": _TEXT}), outcome=DeliveryStatus.PENDING, due_at=NEVER,
        attempts=1, reason=WORD, created_at=now,
    )  # fmt: skip


def columns_of(kind: type) -> set[str]:
    return {one.name for one in fields(kind)}


def find_leaks(text: str, planted: Planted) -> list[str]:
    """Return what a text shows of the content, and every raw control character."""
    return [secret for secret in planted.secrets if secret in text] + [char for char in CONTROLS if char in text]


def files_below(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))
