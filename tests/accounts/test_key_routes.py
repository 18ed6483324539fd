"""API keys over HTTP: whose keys a caller makes, sees and revokes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from broker.accounts.secret_texts import digest_of, new_secret
from storage.accounts.sessions import Session, SessionSecret
from storage.accounts.users import User
from storage.ids import new_session_id
from tests.accounts.test_api_keys import add_user
from tests.support.api import ApiBroker, open_api

pytestmark = pytest.mark.anyio

KEYS = "/api/keys"


class Caller:
    """Requests with one key, or without."""

    def __init__(self, broker: ApiBroker, key: str | None = None) -> None:
        self.broker, self.headers = broker, {"Authorization": f"Bearer {key}"} if key else {}

    async def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        return await self.broker.client.request(method, path, headers=self.headers, **options)

    async def make(self, name: str, **more: Any) -> dict[str, Any]:
        answer = await self.send("POST", KEYS, json={"name": name, **more})
        assert answer.status_code == 201, answer.text
        key: dict[str, Any] = answer.json()["data"]
        return key

    async def names(self) -> list[str]:
        page = (await self.send("GET", KEYS)).json()
        assert all("key" not in key and "digest" not in key for key in page["data"])
        return [key["name"] for key in page["data"]]

    async def outcome(self, method: str, path: str, **options: Any) -> tuple[int, str | None]:
        answer = await self.send(method, path, **options)
        return answer.status_code, answer.json()["code"] if answer.content else None


async def log_in(broker: ApiBroker, user: User) -> str:
    """Begin a session; return its access token."""
    now, secret, sessions = broker.services.clock.now(), new_secret("access"), broker.services.tables.sessions
    session = Session(
        id=new_session_id(),
        user_id=user.id,
        client="",
        address="",
        created_at=now,
        last_seen_at=now,
        expires_at=2 * now,
    )
    token = SessionSecret(digest=digest_of(secret), session_id=session.id, kind="access", expires_at=2 * now)
    await broker.services.database.transact(sessions.insert_session(session), sessions.insert_secret(token))
    return secret


async def test_user_has_the_own_keys_only_and_an_admin_has_all(tmp_path: Path) -> None:
    async with open_api(tmp_path, api_keys=("a-key-of-the-operator",)) as broker:
        ada, bob = [await add_user(broker.services, name) for name in ("Ada", "Bob")]
        boss = await add_user(broker.services, "Boss", is_admin=True)
        operator = Caller(broker, "a-key-of-the-operator")
        made = await operator.make("first", owner="  ADA ", expiresInDays=7)
        assert set(made) == {"id", "name", "prefix", "owner", "createdAt", "lastUsedAt", "expiresAt", "key"}
        assert (made["owner"], made["key"][: len(made["prefix"])]) == ("Ada", made["prefix"])
        of_bob = await operator.make("of bob", owner=bob.id)
        alone = await operator.make("of nobody")
        assert (alone["owner"], alone["expiresAt"]) == (None, None)
        await operator.make("of boss", owner="boss")
        admin, user = [Caller(broker, await log_in(broker, one)) for one in (boss, ada)]
        key, nobody = Caller(broker, made["key"]), Caller(broker, alone["key"])

        assert (await user.make("second"))["owner"] == "Ada"
        assert (
            (await user.make("third", owner=ada.id))["owner"] == (await user.make("4th", owner="Ada"))["owner"] == "Ada"
        )
        assert await user.names() == await key.names() == ["4th", "third", "second", "first"]
        assert await nobody.names() == ["of nobody"]
        everyone = ["4th", "third", "second", "of boss", "of nobody", "of bob", "first"]
        assert await admin.names() == await operator.names() == everyone
        page = (await admin.send("GET", KEYS, params={"limit": "3"})).json()
        rest = (await admin.send("GET", KEYS, params={"cursor": page["nextCursor"]})).json()
        assert [key["name"] for key in page["data"] + rest["data"]] == everyone

        for owner in ("Bob", bob.id, "no one"):
            assert await user.outcome("POST", KEYS, json={"name": "x", "owner": owner}) == (403, "forbidden")
        for one in (key, nobody):
            assert await one.outcome("POST", KEYS, json={"name": "x"}) == (403, "forbidden"), "a key makes no keys"
        assert await admin.outcome("POST", KEYS, json={"name": "x", "owner": "no one"}) == (404, "not_found")
        assert await user.outcome("POST", KEYS, json={"name": "second"}) == (409, "conflict")
        for wrong in ({}, {"name": ""}, {"name": "a/b"}, {"name": "x", "expiresInDays": 0}, {"name": "x", "days": 1}):
            assert (await user.outcome("POST", KEYS, json=wrong))[0] == 400, wrong
        for foreign in (of_bob["id"], "of bob", alone["id"], "of nobody"):
            assert await user.outcome("DELETE", f"{KEYS}/{foreign}") == (404, "not_found")
            assert await nobody.outcome("DELETE", f"{KEYS}/{of_bob['id']}") == (404, "not_found")

        assert await user.outcome("DELETE", f"{KEYS}/second") == (204, None)
        assert await admin.outcome("DELETE", f"{KEYS}/{of_bob['id']}") == (204, None)
        assert await admin.outcome("DELETE", f"{KEYS}/{of_bob['id']}") == (404, "not_found")
        assert await key.outcome("DELETE", f"{KEYS}/{made['id']}") == (204, None), "also the one of the request"
        assert await key.outcome("GET", KEYS) == (401, "unauthorized")
        assert (await Caller(broker).outcome("GET", KEYS)) == (401, "unauthorized")


async def test_tasks_of_a_key_belong_to_its_user_or_to_the_key(tmp_path: Path) -> None:
    """Two keys of one user share their tasks; a key without a user shares them with no other one."""
    async with open_api(tmp_path) as broker:
        await add_user(broker.services, "Ada")
        operator = Caller(broker, None)
        keys = broker.services.key_service
        ada = await broker.services.users.get_by_name("ada")
        first, second = [Caller(broker, (await keys.add(name, user=ada)).secret) for name in ("first", "second")]
        alone, other = [Caller(broker, (await keys.add(name, user=None)).secret) for name in ("alone", "other")]
        assert (await operator.send("GET", "/api/tasks")).status_code == 401, "accounts exist"
        made = await first.send("POST", "/api/generate/image", json={"prompt": "a red fox"})
        task_id = made.json()["taskId"]
        mine = (await alone.send("POST", "/api/generate/image", json={"prompt": "a red fox"})).json()["taskId"]

        async def listed(caller: Caller) -> list[str]:
            return [task["id"] for task in (await caller.send("GET", "/api/tasks")).json()["data"]]

        assert await listed(first) == await listed(second) == [task_id]
        assert (await listed(alone), await listed(other)) == ([mine], [])
        for foreign in (alone, other):
            for method, path in (("DELETE", ""), ("POST", "/retry"), ("POST", "/pin"), ("POST", "/unpin")):
                assert await foreign.outcome(method, f"/api/task/{task_id}{path}") == (404, "task_not_found")
        assert (await second.send("DELETE", f"/api/task/{task_id}")).json()["data"]["status"] == "canceled"
