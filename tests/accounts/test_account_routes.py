"""Accounts over HTTP: cookies, sessions, the rule against other web sites, and the routes of admins."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker.accounts.users import UserChanges
from tests.accounts.browsers import SITES, browser
from tests.accounts.opening import PASSWORD
from tests.support.api import PORT, ApiBroker, open_api
from tests.support.clock import ManualClock

pytestmark = pytest.mark.anyio

KEY = "key-of-the-operator-0123456789"
OPERATOR = {"Authorization": f"Bearer {KEY}"}
NEW_PASSWORD = "another password of the tests"


async def log_in(
    client: httpx.AsyncClient, name: str = "ada", password: str = PASSWORD, **headers: str
) -> httpx.Response:
    return await client.post("/api/login", json={"username": name, "password": password}, headers=headers)


async def is_known(client: httpx.AsyncClient) -> bool:
    return (await client.get("/api/me")).status_code == 200


async def with_cookie(broker: ApiBroker, cookie: str | None) -> int:
    """Return the status of a request with a session cookie."""
    async with browser(broker, Cookie=f"broker_session={cookie}") as client:
        return (await client.get("/api/me")).status_code


@pytest.fixture
async def broker(tmp_path: Path, clock: ManualClock) -> AsyncIterator[ApiBroker]:
    async with open_api(tmp_path, clock=clock, api_keys=(KEY,)) as opened:
        yield opened


async def test_life_of_an_account(broker: ApiBroker) -> None:
    """Registration is closed; the operator adds a user, who logs in, changes the password and logs out."""
    registering = {"username": "ada", "password": PASSWORD}
    closed = await broker.client.post("/api/register", json=registering)
    assert (closed.status_code, closed.json()["code"]) == (403, "forbidden")
    assert "BROKER_REGISTRATION" in closed.json()["error"]

    added = await broker.client.post("/api/users", json={**registering, "email": "ada@example.com"}, headers=OPERATOR)
    assert added.status_code == 201
    user = added.json()["data"]
    assert (user["name"], user["email"], user["isAdmin"], user["lastLoginAt"]) == (
        "ada",
        "ada@example.com",
        False,
        None,
    )
    again = await broker.client.post("/api/users", json={**registering, "username": "ＡＤＡ "}, headers=OPERATOR)
    assert (again.status_code, again.json()["field"]) == (409, "username")

    async with browser(broker) as here, browser(broker) as elsewhere:
        answer = await log_in(here, "Ada")
        assert (answer.status_code, answer.json()["data"]["id"]) == (200, user["id"])
        assert not re.search(r"password|argon2|nb[a-z]_", answer.text.replace("mustChangePassword", ""))
        cookies = answer.headers.get_list("set-cookie")
        assert [cookie.partition("=")[0] for cookie in cookies] == ["broker_session", "broker_device"]
        assert all("HttpOnly" in one and "Path=/" in one and "SameSite=lax" in one for one in cookies)
        await log_in(elsewhere)
        me = (await here.get("/api/me")).json()["data"]
        assert (me["name"], me["user"]["id"], me["isAdmin"]) == ("ada", user["id"], False)
        sessions = (await here.get("/api/me/sessions")).json()["data"]
        assert [one["isCurrent"] for one in sessions].count(True) == 1
        assert {one["address"] for one in sessions} == {"127.0.0.1"} and len(sessions) == 2

        first = here.cookies["broker_session"]
        change = {"password": PASSWORD, "newPassword": NEW_PASSWORD}
        wrong = await here.post("/api/me/password", json={**change, "password": NEW_PASSWORD})
        assert (wrong.status_code, wrong.json()["field"]) == (403, "password")
        changed = await here.post("/api/me/password", json=change)
        assert changed.status_code == 200 and changed.json()["data"]["sessionId"] != me["sessionId"]
        assert here.cookies["broker_session"] != first
        assert await is_known(here) and not await is_known(elsewhere)
        assert await with_cookie(broker, first) == 401
        assert (await log_in(elsewhere)).status_code == 401

        assert (await log_in(elsewhere, password=NEW_PASSWORD)).status_code == 200
        assert (await here.delete("/api/me/sessions")).status_code == 204
        assert await is_known(here) and not await is_known(elsewhere)
        last = here.cookies["broker_session"]
        assert (await here.post("/api/logout")).status_code == 204
        assert "broker_session" not in here.cookies and await with_cookie(broker, last) == 401

        await log_in(here, password=NEW_PASSWORD)
        assert (await here.request("DELETE", "/api/me", json={"password": PASSWORD})).status_code == 403
        assert (await here.request("DELETE", "/api/me", json={"password": NEW_PASSWORD})).status_code == 204
        assert (await log_in(here, password=NEW_PASSWORD)).status_code == 401
    assert (await broker.client.get("/api/users", headers=OPERATOR)).json()["data"] == []


async def test_login_adopts_no_cookie_that_the_browser_had(broker: ApiBroker) -> None:
    """Session fixation: neither an invented secret, nor the session of the attacker, becomes that of the user."""
    for name in ("ada", "mallory"):
        await broker.services.users.add(name, PASSWORD)
    async with browser(broker) as mallory, browser(broker) as victim:
        await log_in(mallory, "mallory")
        for planted in ("nbs_" + "A" * 43, mallory.cookies["broker_session"]):
            victim.cookies.clear()
            answer = await log_in(victim, Cookie=f"broker_session={planted}")
            given = answer.cookies["broker_session"]
            assert given != planted
            assert await with_cookie(broker, planted) == 401
            assert await with_cookie(broker, given) == 200


async def test_unsafe_requests_with_a_cookie_come_from_our_own_page(broker: ApiBroker) -> None:
    """Every combination of headers, with every method. Keys and tokens are no browser's to send, and exempt."""
    await broker.services.users.add("ada", PASSWORD)
    session = f"session_{'0' * 24}"
    unsafe = [("POST", "/api/me/password"), ("DELETE", f"/api/me/sessions/{session}"), ("PATCH", "/api/users/x")]
    unsafe += [
        ("PUT", "/fal/proxy"),
        ("POST", "/api/generate/image"),
        ("POST", "/api/logout"),
    ]
    async with browser(broker) as client:
        cookies = {"Cookie": f"broker_session={(await log_in(client)).cookies['broker_session']}"}
    checked = 0
    for headers, is_own in SITES:
        for method, path in unsafe[: 5 if is_own else 6]:  # the last one would end the session
            answer = await broker.client.request(method, path, headers={**cookies, **headers})
            is_refused = answer.status_code == 403 and "session cookie" in answer.text
            assert is_refused is not is_own, (method, path, headers, answer.text)
            checked += 1
            keyed = await broker.client.request(method, path, headers={**cookies, **headers, **OPERATOR})
            assert "session cookie" not in keyed.text
        for method in ("GET", "HEAD"):
            answer = await broker.client.request(method, "/api/me", headers={**cookies, **headers})
            assert answer.status_code == 200
    assert checked == 4 * 5 + 11 * 6


async def test_another_page_cannot_log_a_browser_in(broker: ApiBroker) -> None:
    """Else the victim would order in the attacker's account. A program sends none of the headers."""
    await broker.services.users.add("ada", PASSWORD)
    body = {"username": "ada", "password": PASSWORD}
    for headers, is_own in SITES:
        answer = await broker.client.post("/api/login", json=body, headers=headers)
        says_nothing = not {"Sec-Fetch-Site", "Origin"} & headers.keys()
        assert answer.status_code == (200 if is_own or says_nothing else 403), headers
    form = await broker.client.post(
        "/api/login", content=b'{"username": "ada", "password": "x"}', headers={"Content-Type": "text/plain"}
    )
    assert (form.status_code, form.json()["field"]) == (400, "Content-Type")


async def test_cookies_behind_tls_belong_to_this_host_alone(broker: ApiBroker) -> None:
    await broker.services.users.add("ada", PASSWORD)
    secure = {"X-Forwarded-Proto": "https", "Origin": f"https://127.0.0.1:{PORT}"}
    async with browser(broker, **secure) as client:
        answer = await log_in(client)
        cookies = answer.headers.get_list("set-cookie")
        assert all(one.startswith("__Host-broker_") and "Secure" in one and "Domain" not in one for one in cookies)
        secret = cookies[0].partition(";")[0].partition("=")[2]
        named = {"Cookie": f"__Host-broker_session={secret}"}
        assert (await client.get("/api/me", headers=named)).status_code == 200
        plain = {"Cookie": f"broker_session={secret}"}  # as a page without TLS could have planted it
        assert (await client.get("/api/me", headers=plain)).status_code == 401


async def test_admins_change_users(broker: ApiBroker, clock: ManualClock) -> None:
    root = await broker.services.users.add("root", PASSWORD, is_admin=True)
    ada = await broker.services.users.add("ada", PASSWORD)
    async with browser(broker) as admin, browser(broker) as user:
        await log_in(admin, "root")
        await log_in(user)
        assert (await user.get("/api/users")).status_code == 403
        page = (await admin.get("/api/users", params={"limit": "1"})).json()
        rest = (await admin.get("/api/users", params={"limit": "5", "cursor": page["nextCursor"]})).json()
        assert {one["name"] for one in (*page["data"], *rest["data"])} == {"root", "ada"}
        assert (await admin.get("/api/users", params={"name": "ADA"})).json()["data"][0]["id"] == ada.id

        async def patch(user_id: str = ada.id, **changes: Any) -> httpx.Response:
            return await admin.patch(f"/api/users/{user_id}", json=changes)

        limits = (await patch(quota={"images": 5, "usd": "unlimited", "inFlight": 2})).json()["data"]["quota"]
        assert limits == {"images": 5, "usd": "unlimited", "inFlight": 2}
        assert (await patch(quota={"images": None})).json()["data"]["quota"] == {"usd": "unlimited", "inFlight": 2}
        assert (await patch(quota={"in_flight": 2})).status_code == 200, "the name that GET /api/me shows"
        for wrong in ({"images": -1}, {"images": 1.5}, {"usd": True}, {"usd": "lots"}, {"pins": 1e16}):
            refused, (name,) = await patch(quota=wrong), wrong
            assert (refused.status_code, refused.json()["field"]) == (400, f"quota.{name}")
            assert refused.json()["error"].startswith(f"quota.{name}: should be a number from 0")
        assert (await patch(quota={"cats": 1})).status_code == 400
        for password, words in (("short", "at least 8 characters."), ("x" * 1025, "at most 1024 characters.")):
            assert (await patch(password=password)).json()["error"] == f"password: should have {words}"

        assert (await patch(mustChangePassword=True)).status_code == 200
        assert (await user.get("/api/tasks")).status_code == 403
        assert (await user.get("/api/me")).json()["data"]["user"]["mustChangePassword"] is True
        change = {"password": PASSWORD, "newPassword": PASSWORD}
        same = await user.post("/api/me/password", json=change)  # else the one that an admin knows stays
        assert (same.status_code, same.json()["field"]) == (400, "newPassword")
        change["newPassword"] = NEW_PASSWORD
        assert (await user.post("/api/me/password", json=change)).status_code == 200
        assert (await user.get("/api/tasks")).status_code == 200

        assert (await patch(isAdmin=True)).status_code == 200
        assert not await is_known(user)  # a session keeps no rights that it did not begin with
        await log_in(user, password=NEW_PASSWORD)
        assert (await user.get("/api/users")).status_code == 200
        assert (await patch(isDisabled=True)).status_code == 200
        assert not await is_known(user) and (await log_in(user, password=NEW_PASSWORD)).status_code == 401
        assert (await patch(isDisabled=False)).status_code == 200
        assert not await is_known(user) and (await log_in(user, password=NEW_PASSWORD)).status_code == 200
        assert (await patch(password=PASSWORD)).status_code == 200
        assert not await is_known(user) and (await log_in(user)).status_code == 200

        for own in ({"isAdmin": False}, {"isDisabled": True}):
            assert (await patch(root.id, **own)).status_code == 409
        assert (await admin.delete(f"/api/users/{root.id}")).status_code == 409
        assert (await admin.delete(f"/api/users/{ada.id}")).status_code == 204
        assert not await is_known(user)
        assert (await admin.delete(f"/api/users/{ada.id}")).status_code == 404
        assert (await patch(isAdmin=True)).status_code == 404


async def test_a_disabled_user_learns_it_with_the_right_password_alone(broker: ApiBroker) -> None:
    """A stranger does not learn that the account exists."""
    user = await broker.services.users.add("ada", PASSWORD)
    await broker.services.users.change(user.id, UserChanges(is_disabled=True))
    async with browser(broker) as client:
        right, wrong = await log_in(client), await log_in(client, password=NEW_PASSWORD)
        assert [answer.status_code for answer in (right, wrong)] == [401, 401]
        assert "disabled" in right.text and "wrong" in wrong.text
        assert "set-cookie" not in right.headers


async def test_open_registration(tmp_path: Path, clock: ManualClock) -> None:
    """A new user is logged in, is no admin, and one address registers a bounded number."""
    async with open_api(tmp_path, clock=clock, registration="open") as broker, browser(broker) as client:
        statuses = []
        for number in range(11):
            body = {"username": f"user {number}", "password": PASSWORD}
            answer = await client.post("/api/register", json=body)
            statuses.append(answer.status_code)
        assert statuses == [201] * 10 + [429]
        assert answer.headers["retry-after"] == "60"
        me = (await client.get("/api/me")).json()["data"]
        assert (me["name"], me["isAdmin"]) == ("user 9", False)
        rows = await broker.services.database.fetch("SELECT id FROM sessions")
        assert [row["id"] for row in rows] == [me["sessionId"]]  # each registration ended the session before
        clock.advance(60.0)
        taken = await client.post("/api/register", json={"username": "USER 9", "password": PASSWORD})
        assert taken.status_code == 409
        short = await client.post("/api/register", json={"username": "bob", "password": "seven77"})
        assert short.status_code == 400
