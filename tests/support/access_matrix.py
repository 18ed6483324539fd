"""Access to everything: every route of the endpoint lists × every kind of object × every kind of principal.

`python -m tests.support.access_matrix` prints the table. All objects belong to one user, the owner; an answer to any
other principal must neither hold an object's content nor tell a foreign id from one that does not exist.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
from pydantic import SecretStr

from broker.accounts.secret_texts import digest_of, new_secret
from broker.api.dialects.gemini.batch_documents import ORIGIN
from broker.api.http.endpoint import Dialect, Endpoint
from broker.logs import configure_logging
from storage.accounts.api_keys import ApiKey
from storage.accounts.sessions import Session, SessionSecret
from storage.accounts.users import User
from storage.batches import StoredBatch
from storage.conversations.turns import NewTurn
from storage.files.uploaded_files import UploadedFile
from storage.ids import new_api_key_id, new_image_name, new_session_id, new_turn_id, new_user_id, reference_owner
from storage.states import TaskState
from tests.support.api import ApiBroker, open_api, png
from tests.support.brokers import RunningBroker
from tests.support.fuzzing import dialects_of

CANARY: Final = "canary-of-the-owner"
"""In every text that the owner's objects hold."""
HOUSE_KEY: Final = "key-of-the-house-0123456789"
PRINCIPALS: Final = ("stranger", "expired", "disabled", "other", "house", "admin", "owner")
"""expired: the owner's session after its end. The owner is last: a request of it may delete the object."""
WITHOUT_ACCESS: Final = ("stranger", "expired", "disabled")
_OK: Final = frozenset({200, 201, 202, 204, 206, 302, 303, 304})

KINDS: Final = (
    (r"/api/task/\{id\}/retry", "failed task"),
    (r"/api/task/\{id\}/events", "failed task"),  # a stream that ends
    (r"/fal/.*/requests/\{id\}/status/stream", "failed task"),
    (r"/api/task/\{id\}", "task"),
    (r"/api/batch/\{id\}", "batch"),
    (r"/uploads/images/", "image"),
    (r"/uploads/references/", "reference"),
    (r"/api/callbacks/\{id\}", "callback"),
    (r"/api/deliveries/\{id\}", "delivery"),
    (r"/api/v1/images/(status/)?\{id\}", "task"),
    (r"/v1(beta)?/batches/\{id\}", "gemini batch"),
    (r"/v1/(images/)?tasks/\{id\}", "task"),
    (r"/v1/predictions/\{id\}", "task"),
    (r"/fal/.*/requests/\{id\}", "task"),
    (r"/(v1beta|v1|api)/files/\{id\}", "file"),
    (r"/api/v1/jobs/recordInfo", "task"),
    (r"/api/me/sessions/\{id\}", "session"),
    (r"/api/keys/\{id\}", "key"),
    (r"/api/users/\{id\}", "user"),
    (r"/conversations/\{id\}", "conversation"),
)
"""Start of a path → the kind of object that its id names; the first match counts."""
WITHOUT_OBJECT: Final = (
    r"/api/webhook/\{provider\}|/api/providers/\{name\}|/docs/\{file\}|/upload/v1(beta)?/files/\{upload\}|"
    r"/fal/storage/uploads/\{id\}/file|/v1(beta)?/models/|/v1/deployments/|/fal/run/\{app:path\}|"
    r"/fal/\{owner\}/\{alias\}(/\{endpoint\})?$|/api/me/provider-keys/\{provider\}"
)
"""Paths whose parameters name nothing that belongs to anyone, or hold a secret of their own (uploads)."""
MAX_SECONDS: Final = 10.0
"""For one answer; a stream must end."""
IN_QUERY: Final = {"/api/v1/jobs/recordInfo": "taskId"}
"""Routes without an id in the path that take one from the query."""
BODIES: Final[Mapping[str, Any]] = {"PATCH /conversations/{id}": {"pinned": True}}
"""Route → JSON body that its owner may send."""
OVERSEEN: Final = frozenset(
    {
        "DELETE /api/task/{id}",
        "DELETE /api/batch/{id}",
        "GET /api/keys",
        "DELETE /api/keys/{id}",
    }
)
"""Routes of callers at which an admin may name a user's object; the answer holds it, because the id opens it.

Of keys an admin sees names, and revokes them.
"""
WITHHELD: Final = frozenset({"GET /api/callbacks/{id}/fixture"})
"""Routes for admins that are nothing but content, which admins do not get of other accounts."""
NEEDS_USER: Final = r"/api/me"
"""Start of paths about the user's own account: the operator's keys, which have none, may get 403."""
ENDS_SESSION: Final = frozenset(
    {"POST /api/logout", "POST /auth/logout", "DELETE /api/me/sessions", "DELETE /api/me/sessions/{id}"}
)
"""Routes after which the principal logs in again."""
OPEN_STATUSES: Final = {"/fal/": {400}}
"""Start of a path → other answers to an owner: fal has 400 for a request that is not finished."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One request. status: of its answer. problem: what is wrong with it; empty if nothing."""

    route: str
    object: str
    principal: str
    status: int
    problem: str = ""


@dataclass(kw_only=True)
class World:
    """A broker with one user whose objects the others try to reach."""

    broker: ApiBroker
    owner: str
    headers: dict[str, Mapping[str, str]]
    """By principal."""
    users: Mapping[str, str]
    """Ids by name."""
    numbers: int = 0
    planters: Mapping[str, Callable[[], Awaitable[str]]] = field(init=False)
    """By kind: make an object of the owner, return its id."""

    def __post_init__(self) -> None:
        self.planters = {
            "task": self._plant_task,
            "failed task": self._plant_failed_task,
            "batch": self._plant_batch,
            "image": self._plant_image,
            "reference": self._plant_reference,
            "callback": self._plant_callback,
            "delivery": self._plant_delivery,
            "gemini batch": self._plant_gemini_batch,
            "file": self._plant_file,
            "session": self._plant_session,
            "key": self._plant_key,
            "user": self._plant_user,
            "conversation": self._plant_conversation,
        }

    async def _task(self, **changes: Any) -> Any:
        self.numbers += 1
        return await self.broker.add_task(
            number=self.numbers, caller=self.owner, prompt=f"{CANARY} prompt", texts=(f"{CANARY} text",), **changes
        )

    async def _plant_task(self) -> str:
        return str((await self._task()).id)

    async def _plant_failed_task(self) -> str:
        ended = {"state": TaskState.FAILED, "ended_at": self.broker.services.clock.now(), "error_code": "no_image"}
        return str((await self._task(**ended)).id)

    async def _plant_batch(self) -> str:
        return str((await self._task()).batch)

    async def _ended_task(self) -> Any:
        return await self._task(state=TaskState.SUCCEEDED, ended_at=self.broker.services.clock.now())

    async def _plant_image(self) -> str:
        task = await self._ended_task()
        name = new_image_name("generated", task.created_at, "png")
        return (await self.broker.add_image(task.id, png(), name=name)).name

    async def _plant_reference(self) -> str:
        task = await self._task()
        name = new_image_name("reference", task.created_at, "png")
        owner = reference_owner(task.batch)
        return (await self.broker.add_image(owner, png(), kind="reference", name=name)).name

    async def _plant_callback(self) -> str:
        task = await self._task()
        body = {"task_id": task.id, "state": f"{CANARY} body"}
        await self.broker.client.post("/api/webhook/kie", json=body, headers=self.headers["house"])
        sql = "SELECT id FROM callbacks WHERE task_id = :id"
        return str((await self.broker.services.database.fetch(sql, id=task.id))[0]["id"])

    async def _plant_delivery(self) -> str:
        return (await self.broker.add_delivery(await self._ended_task())).id

    async def _plant_gemini_batch(self) -> str:
        place = {"item": 0, "of": 1}
        task, now = await self._task(origin={ORIGIN: place}), self.broker.services.clock.now()
        batch = StoredBatch(
            id=task.batch,
            caller=self.owner,
            dialect="gemini",
            name=f"{CANARY} batch",
            model="gemini-2.5-flash-image",
            created_at=now,
            updated_at=now,
        )
        await self.broker.services.database.transact(self.broker.services.tables.batches.insert_batch(batch))
        return batch.id.removeprefix("batch_")

    async def _plant_file(self) -> str:
        owner, file_id = f"file_{secrets.token_hex(16)}", secrets.token_hex(16)
        async with self.broker.services.blobs.new_draft(owner) as draft:
            await draft.write(png())
            blob = await draft.commit("image/png")
        file = UploadedFile(
            owner=owner,
            caller=self.owner,
            id=file_id,
            name=f"{CANARY} file.png",
            blob=blob.name,
            media_type="image/png",
            size=blob.size,
            width=4,
            height=4,
            sha256=blob.sha256,
            created_at=self.broker.services.clock.now(),
        )
        await self.broker.services.database.transact(self.broker.services.tables.uploaded_files.insert_file(file))
        return file_id

    async def _plant_session(self) -> str:
        await log_in(self.broker, self.owner)
        sql = "SELECT id FROM sessions WHERE user_id = :user ORDER BY created_at DESC, id LIMIT 1"
        return str((await self.broker.services.database.fetch(sql, user=self.owner))[0]["id"])

    async def _plant_key(self) -> str:
        self.numbers += 1
        return (await insert_key(self.broker, self.owner, f"{CANARY} key {self.numbers}"))[0]

    async def _plant_user(self) -> str:
        self.numbers += 1
        return await add_user(self.broker, f"user{self.numbers}")

    async def log_in_again(self, principal: str) -> None:
        if principal in self.users and "Cookie" in self.headers[principal]:
            self.headers[principal] = await log_in(self.broker, self.users[principal])

    async def _plant_conversation(self) -> str:
        task, tables = await self._ended_task(), self.broker.services.tables
        title, now = f"{CANARY} title", self.broker.services.clock.now()
        conversation = await self.broker.services.conversation_parts.service.create(self.owner, title)
        turn = NewTurn(
            id=new_turn_id(now),
            conversation_id=conversation.id,
            parent_id=None,
            parent_task=None,
            batch=task.batch,
            inputs=0,
            created_at=now,
        )
        counting = tables.conversations.count_turn(conversation.id, title="", most=1, now=now)
        await tables.database.transact(counting, tables.turns.insert_turn(turn))
        return conversation.id

    async def send(self, endpoint: Endpoint, principal: str, object_id: str) -> httpx.Response:
        route = f"{endpoint.method} {endpoint.path}"
        query = {IN_QUERY[endpoint.path]: object_id} if endpoint.path in IN_QUERY else {}
        answer = await self.broker.client.request(
            endpoint.method,
            path_with(endpoint.path, object_id),
            params=query,
            json=BODIES.get(route),
            headers=self.headers[principal],
            timeout=MAX_SECONDS,
        )
        self.broker.client.cookies.clear()  # a login must not stay for the next principal
        if route in ENDS_SESSION:
            await self.log_in_again(principal)
        return answer


def path_with(path: str, object_id: str) -> str:
    """Return the path with an id in place of the parameter that names an object."""
    path = re.sub(r"\{(id|upload)\}", object_id, path)
    if path.startswith(("/uploads/", "/docs/")):
        path = re.sub(r"\{(name|file)\}", object_id, path)
    return re.sub(r"\{[a-z_]+(:path)?\}", "nothing", path)


def kind_of(endpoint: Endpoint) -> str | None:
    """Return the kind of object that an endpoint is about; None for none. Raises KeyError for a route not listed."""
    for pattern, kind in KINDS:
        if re.match(pattern, endpoint.path):
            return kind
    if "{" in endpoint.path and not re.match(WITHOUT_OBJECT, endpoint.path):
        raise KeyError(f"{endpoint.method} {endpoint.path} is not in the access matrix: add it to KINDS")
    return None


@asynccontextmanager
async def open_world(folder: Path, **settings: Any) -> AsyncIterator[World]:
    """Run a broker with users, and one session or key for each kind of principal."""
    async with open_api(folder, api_keys=(SecretStr(HOUSE_KEY),), **settings) as broker:
        users = {
            name: await add_user(broker, name, is_admin=name == "admin", is_disabled=name == "disabled")
            for name in ("owner", "other", "admin", "disabled")
        }
        headers: dict[str, Mapping[str, str]] = {
            "stranger": {"X-Forwarded-For": "8.8.8.8"},
            "expired": await log_in(broker, users["owner"], seconds=-1),
            "disabled": await log_in(broker, users["disabled"]),
            "other": {"Authorization": f"Bearer {(await insert_key(broker, users['other'], 'a key'))[1]}"},
            "house": {"Authorization": f"Bearer {HOUSE_KEY}"},
            "admin": await log_in(broker, users["admin"]),
            "owner": await log_in(broker, users["owner"]),
        }
        yield World(broker=broker, owner=users["owner"], headers=headers, users=users)


async def add_user(broker: ApiBroker | RunningBroker, name: str, **changes: Any) -> str:
    now = broker.services.clock.now()
    user = User(id=new_user_id(), name=name, name_key=name, password_hash="", created_at=now, updated_at=now, **changes)
    await broker.services.database.transact(broker.services.tables.users.insert_user(user))
    return user.id


async def log_in(broker: ApiBroker, user: str, *, seconds: float = 3600) -> dict[str, str]:
    """Insert a session that ends after so many seconds; return the headers of its requests."""
    expires_at = broker.services.clock.now() + seconds
    now, secret, sessions = broker.services.clock.now(), new_secret("cookie"), broker.services.tables.sessions
    session = Session(
        id=new_session_id(),
        user_id=user,
        client="",
        address="",
        created_at=now,
        last_seen_at=now,
        expires_at=expires_at,
    )
    known = SessionSecret(digest=digest_of(secret), session_id=session.id, kind="cookie", expires_at=expires_at)
    await broker.services.database.transact(sessions.insert_session(session), sessions.insert_secret(known))
    return {"Cookie": f"broker_session={secret}", "Sec-Fetch-Site": "same-origin"}


async def insert_key(broker: ApiBroker | RunningBroker, user: str, name: str) -> tuple[str, str]:
    """Return the id of a new key, and the key."""
    secret = new_secret("api_key")
    key = ApiKey(
        id=new_api_key_id(),
        digest=digest_of(secret),
        prefix=secret[:8],
        name=name,
        owner=user,
        created_at=broker.services.clock.now(),
    )
    await broker.services.database.transact(broker.services.tables.api_keys.insert_key(key))
    return key.id, secret


async def run_matrix(world: World, *, only: str = "") -> list[Cell]:
    """Send every request of the matrix, or those of one path."""
    cells = []
    strays = {kind: await plant() for kind, plant in world.planters.items()}
    for dialect, endpoint in endpoints_with_dialect(world.broker):
        if endpoint.access == "provider" or (only and endpoint.path != only):
            continue  # callbacks of providers prove themselves
        kind = kind_of(endpoint)
        for principal in PRINCIPALS:
            cells.append(await _try(world, dialect, endpoint, principal, kind))
        if kind is not None:
            cells += [
                await _try_stray(world, endpoint, stray, object_id)
                for stray, object_id in strays.items()
                if stray != kind and {stray, kind} != {"task", "failed task"}
            ]
    return cells


def endpoints_with_dialect(broker: ApiBroker) -> list[tuple[Dialect, Endpoint]]:
    return [(dialect, endpoint) for dialect in dialects_of(broker) for endpoint in dialect.endpoints]


async def _try(world: World, dialect: Dialect, endpoint: Endpoint, principal: str, kind: str | None) -> Cell:
    """Let a principal name an object of the owner, made for this request."""
    object_id = await world.planters[kind]() if kind else "nothing"
    answer = await world.send(endpoint, principal, object_id)
    problem = _problem(dialect, endpoint, principal, kind, answer)
    if not problem and principal != "owner" and endpoint.access != "public" and kind is not None:
        problem = await _compare_with_unknown(world, endpoint, principal, object_id, answer)
    return Cell(
        route=f"{endpoint.method} {endpoint.path}",
        object=kind or "",
        principal=principal,
        status=answer.status_code,
        problem=problem,
    )


def _problem(dialect: Dialect, endpoint: Endpoint, principal: str, kind: str | None, answer: httpx.Response) -> str:
    status, route = answer.status_code, f"{endpoint.method} {endpoint.path}"
    if status >= 500 and endpoint.path != "/ready":
        return "a server error"
    if endpoint.access == "public":
        return "401 at a public route" if status == 401 else ""
    if principal in WITHOUT_ACCESS:
        return "" if status == 401 else "open without a login"
    if endpoint.access == "admin":
        is_admin = principal in {"admin", "house"}
        if is_admin and route in WITHHELD:
            return "" if status == 403 else "content is not withheld"
        return "" if is_admin == (status not in {401, 403}) else "admin access is wrong"
    if status == 403 and principal == "house" and re.match(NEEDS_USER, endpoint.path):
        return ""
    if status in {401, 403}:
        return "refused"
    is_overseer = principal in {"admin", "house"} and route in OVERSEEN
    if kind is not None and principal != "owner" and not is_overseer:
        is_gone = status == 404 or (dialect.has_errors_in_success and CANARY not in answer.text)
        return "" if is_gone else "a foreign object is not 404"
    if kind is not None and not _is_served(endpoint, answer):
        return "the owner's object is not served"
    if principal != "owner" and not is_overseer and CANARY in answer.text:
        return "shows what the owner's objects hold"
    return ""


def _is_served(endpoint: Endpoint, answer: httpx.Response) -> bool:
    more = next((found for start, found in OPEN_STATUSES.items() if endpoint.path.startswith(start)), set[int]())
    return answer.status_code in {*_OK, 409, *more}


async def _compare_with_unknown(
    world: World, endpoint: Endpoint, principal: str, object_id: str, answer: httpx.Response
) -> str:
    """Return a problem if the answer about a foreign object differs from that about an id that does not exist."""
    if answer.status_code != 404:
        return ""
    unknown = re.sub(r"[0-9a-f]{16}", lambda _: secrets.token_hex(8), object_id)
    other = await world.send(endpoint, principal, unknown)
    texts = [one.text.replace(name, "ID") for one, name in ((answer, object_id), (other, unknown))]
    is_same = other.status_code == 404 and texts[0] == texts[1]
    return "" if is_same else "a foreign object differs from an unknown one"


async def _try_stray(world: World, endpoint: Endpoint, stray: str, object_id: str) -> Cell:
    """Let another user name an object of another kind."""
    answer = await world.send(endpoint, "other", object_id)
    is_closed = answer.status_code in {400, 401, 403, 404} or CANARY not in answer.text
    return Cell(
        route=f"{endpoint.method} {endpoint.path}",
        object=f"{stray} instead",
        principal="other",
        status=answer.status_code,
        problem="" if is_closed and answer.status_code < 500 else "an object of another kind is shown",
    )


def matrix_lines(cells: Sequence[Cell]) -> list[str]:
    """Return the table, and its count."""
    rows: dict[tuple[str, str], dict[str, Cell]] = {}
    for cell in cells:
        rows.setdefault((cell.route, cell.object), {})[cell.principal] = cell
    width = max(len(f"{route}  {kind}") for route, kind in rows) + 2
    lines = [" " * width + "".join(f"{name:>10}" for name in PRINCIPALS)]
    for (route, kind), found in rows.items():
        marks = (
            f"{found[name].status}{'!' if found[name].problem else ''}" if name in found else "" for name in PRINCIPALS
        )
        lines.append(f"{route}  {kind}".ljust(width) + "".join(f"{mark:>10}" for mark in marks))
    wrong = [cell for cell in cells if cell.problem]
    lines += [f"{cell.route} · {cell.object} · {cell.principal}: {cell.status}, {cell.problem}" for cell in wrong]
    routes = len({cell.route for cell in cells})
    return [*lines, f"{len(cells)} requests: {routes} routes, {len(PRINCIPALS)} principals, {len(wrong)} wrong"]


async def main() -> int:
    configure_logging("CRITICAL", "console", None)
    with tempfile.TemporaryDirectory() as folder:
        async with open_world(Path(folder)) as world:
            cells = await run_matrix(world)
    sys.stdout.write("\n".join([*matrix_lines(cells), ""]))
    return 1 if any(cell.problem for cell in cells) else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
