"""Accounts in the dialects: the cookies of the chat service, and the tokens of the image service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker.accounts.throttle import SERIES
from broker.accounts.users import UserChanges
from broker.clock import iso
from tests.accounts.browsers import OWN, SITES, browser
from tests.accounts.opening import PASSWORD, count_hashes
from tests.support.api import ApiBroker, open_api
from tests.support.clock import ManualClock

pytestmark = pytest.mark.anyio

WRONG = "a wrong password of the tests"
ADA = {"username": "ada", "password": PASSWORD}
MIDNIGHT = "2026-09-22T00:00:00.000Z"
"""After the first moment of the manual clock."""
STRANGER = {"X-Forwarded-For": "8.8.8.8"}
SIGNUP, LOGIN, LOGOUT = "/auth/signup", "/auth/login", "/auth/logout"
S4 = "/api/v1/auth"
REGISTER, TOKENS, REFRESH, S4_ME = f"{S4}/register", f"{S4}/login", f"{S4}/refresh", f"{S4}/me"


@pytest.fixture
async def broker(tmp_path: Path, clock: ManualClock) -> AsyncIterator[ApiBroker]:
    settings: dict[str, Any] = {"registration": "open", "user_daily_images": 2, "cors_origins": "https://ui.example"}
    async with open_api(tmp_path, clock=clock, api_keys=("key-of-the-operator-0123456789",), **settings) as opened:
        yield opened


async def me_of(client: httpx.AsyncClient, **headers: str) -> dict[str, Any]:
    answer = await client.get("/me", headers=headers)
    assert answer.status_code == 200, answer.text
    me: dict[str, Any] = answer.json()
    return me


def bearer(tokens: Mapping[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {tokens['access_token']}"}


# -- the chat service (S0-10 … S0-13)


async def test_session_of_the_chat_service_from_signup_to_logout(broker: ApiBroker, clock: ManualClock) -> None:
    async with browser(broker) as page:
        assert await me_of(page) == {"authenticated": False}
        signed_up = await page.post(SIGNUP, json={**ADA, "captcha": "ignored"})
        user = signed_up.json()
        assert (signed_up.status_code, user) == (200, {"id": user["id"], "username": "ada"})
        cookies = signed_up.headers.get_list("set-cookie")
        assert all("HttpOnly" in one and "Path=/" in one and "SameSite=lax" in one for one in cookies)
        me = await me_of(page)
        assert me.pop("quota")["images"] == {"limit": 2, "used": 0, "left": 2, "resets_at": MIDNIGHT}
        assert me.pop("created_at") == iso(clock.now())
        assert me == {"authenticated": True, "must_change_password": False, **user}

        first = page.cookies["broker_session"]
        logged_out = await page.post(LOGOUT)
        assert (logged_out.status_code, logged_out.json()) == (200, {"ok": True})
        assert "broker_session" not in page.cookies and await me_of(page) == {"authenticated": False}
        assert await me_of(page, Cookie=f"broker_session={first}") == {"authenticated": False}
        again = await page.post(LOGOUT)
        assert (again.status_code, list(again.json())) == (401, ["detail"])

        taken = await page.post(SIGNUP, json={**ADA, "username": "ADA"}, headers={"Accept-Language": "zh"})
        assert (taken.status_code, taken.json()) == (409, {"detail": "该用户名已被占用，请换一个。"})
        short = await page.post(SIGNUP, json={"username": "bob", "password": "seven77"})
        assert (short.status_code, list(short.json())) == (400, ["detail"]) and "8 characters" in short.text
        assert (await page.post(LOGIN, json={"username": "ada"})).status_code == 400
        assert (await page.post(LOGIN, json={**ADA, "username": " Ada "})).json() == user
        clock.advance(86_401.0)
        assert await me_of(page) == {"authenticated": False}

        await page.post(LOGIN, json=ADA)
        await broker.services.users.change(user["id"], UserChanges(must_change_password=True))
        assert (await me_of(page))["must_change_password"] is True
        refused = await page.post("/v1/generate", json={"prompt": "a fox"})
        assert refused.status_code == 403 and "POST /api/me/password" in refused.json()["detail"]
        assert (await page.post(LOGOUT)).status_code == 200


async def test_closed_registration_names_the_cure(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker, browser(broker) as page:
        for path in (SIGNUP, REGISTER):
            answer = await page.post(path, json=ADA)
            assert (answer.status_code, list(answer.json())) == (403, ["detail"])
            assert "BROKER_REGISTRATION=open" in answer.text and "broker users add" in answer.text
            assert "set-cookie" not in answer.headers
        local = await me_of(page)
        assert (local["authenticated"], local["id"], local["quota"]) == (True, "house:local", {})
        assert await me_of(page, **STRANGER) == {"authenticated": False}
        assert (await page.get("/")).json()["service"] == "nano-banana-broker"
        html = await page.get("/", headers={"Accept": "text/html,*/*;q=0.8"})
        assert html.headers["content-type"].startswith("text/html") and "<!doctype html>" in html.text


async def test_routes_with_a_cookie_serve_our_own_page_alone(broker: ApiBroker) -> None:
    """Every combination of headers. Else another page could order, log out, or log the browser in."""
    await broker.services.users.add("ada", PASSWORD)
    async with browser(broker) as page:
        cookies = {"Cookie": f"broker_session={(await page.post(LOGIN, json=ADA)).cookies['broker_session']}"}
        for path, body in ((LOGOUT, None), ("/v1/generate", {"prompt": ""})):
            for headers, is_own in SITES:
                if is_own and path == LOGOUT:
                    continue  # it would end the session
                answer = await broker.client.post(path, json=body, headers={**cookies, **headers})
                assert (answer.status_code == 403 and "session cookie" in answer.text) is not is_own, (path, headers)
        assert (await me_of(page))["authenticated"] is True
        for path in (LOGIN, SIGNUP):  # the body tells requests that pass the check, without the work of a password
            for headers, is_own in SITES:
                says_nothing = not {"Sec-Fetch-Site", "Origin"} & headers.keys()
                answer = await broker.client.post(path, json={}, headers=headers)
                assert answer.status_code == (400 if is_own or says_nothing else 403), (path, headers)
            text = {"Content-Type": "text/plain"}
            answer = await broker.client.post(path, content=b'{"username":"ada","password":"x"}', headers=text)
            assert answer.status_code == 400 and "application/json" in answer.text


async def test_chat_service_adopts_no_cookie_that_the_browser_had(broker: ApiBroker) -> None:
    """Session fixation: at the login and at the signup."""
    await broker.services.users.add("ada", PASSWORD)
    async with browser(broker) as mallory, browser(broker) as victim:
        await mallory.post(SIGNUP, json={**ADA, "username": "mallory"})
        planted = mallory.cookies["broker_session"]
        for path, name in ((SIGNUP, "bob"), (LOGIN, "ada")):
            if path == LOGIN:
                planted = (await mallory.post(LOGIN, json={**ADA, "username": "mallory"})).cookies["broker_session"]
            victim.cookies.clear()
            body = {**ADA, "username": name}
            given = (await victim.post(path, json=body, headers={"Cookie": f"broker_session={planted}"})).cookies
            assert given["broker_session"] != planted
            assert (await me_of(mallory, Cookie=f"broker_session={planted}")).get("username") != name
            assert (await me_of(victim))["username"] == name
        assert await me_of(mallory, Cookie=f"broker_session={planted}") == {"authenticated": False}


# -- the image service (S4-13 … S4-15)


async def test_tokens_of_the_image_service(broker: ApiBroker, clock: ManualClock) -> None:
    client = broker.client
    registered = await client.post(REGISTER, json={**ADA, "email": "ada@example.com"})
    tokens = registered.json()
    assert (registered.status_code, list(tokens)) == (
        200,
        ["access_token", "refresh_token", "token_type", "expires_in"],
    )
    assert (tokens["token_type"], tokens["expires_in"]) == ("bearer", 10_800)
    assert "set-cookie" not in registered.headers and registered.headers["cache-control"] == "no-store"
    me = (await client.get(S4_ME, headers=bearer(tokens))).json()
    assert me.pop("quota")["images"]["left"] == 2
    assert me == {
        "id": me["id"],
        "username": "ada",
        "email": "ada@example.com",
        "is_active": True,
        "is_admin": False,
        "created_at": me["created_at"],
    }
    assert (await me_of(client, **bearer(tokens)))["id"] == me["id"]

    login, form = {"username": "ada", "password": PASSWORD}, {"grant_type": "password", "scope": "", **ADA}
    json_bodies: list[Any] = [login, {"username_or_email": "Ada", "password": PASSWORD}]
    sent: list[dict[str, Any]] = [{"json": one} for one in json_bodies]
    sent += [{"data": form}, {"data": form, "files": {"unused": ("", b"")}}]
    for body in sent:
        answer = await client.post(TOKENS, **body)
        assert (answer.status_code, answer.json()["token_type"]) == (200, "bearer"), body
        assert (await client.get(S4_ME, headers=bearer(answer.json()))).json()["id"] == me["id"]
    wrong: list[dict[str, Any]] = [
        {"json": {"password": PASSWORD}},
        {"json": {**login, "password": 5}},
        {"data": {"username": "ada"}},
        {"data": {"username": ["ada", "bob"], "password": PASSWORD}},
        {"content": b"username=%ff&password=x", "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
        {"content": b'{"username":"ada","password":"x"}', "headers": {"Content-Type": "text/plain"}},
    ]
    for body in wrong:
        answer = await client.post(TOKENS, **body)
        assert (answer.status_code, list(answer.json())) == (400, ["detail"]), body
        assert PASSWORD not in answer.text
    large = await client.post(TOKENS, data={"username": "a" * 20_000, "password": "x"})
    assert large.status_code == 413
    taken = await client.post(REGISTER, json=ADA)
    assert (taken.status_code, list(taken.json())) == (409, ["detail"])
    clock.advance(10_801.0)
    expired = await client.get(S4_ME, headers=bearer(tokens))
    assert (expired.status_code, expired.headers["www-authenticate"]) == (401, "Bearer")
    assert list(expired.json()) == ["detail"]


async def test_refresh_token_is_valid_once_and_its_reuse_ends_the_session(broker: ApiBroker) -> None:
    async def refresh(token: str) -> httpx.Response:
        return await broker.client.post(REFRESH, json={"refresh_token": token})

    async def status(tokens: Mapping[str, Any]) -> int:
        return (await broker.client.get(S4_ME, headers=bearer(tokens))).status_code

    first = (await broker.client.post(REGISTER, json=ADA)).json()
    second = (await refresh(first["refresh_token"])).json()
    assert second.keys() == first.keys() and not set(second.values()) & {first["access_token"], first["refresh_token"]}
    assert [await status(first), await status(second)] == [401, 200]
    assert (await refresh(second["access_token"])).status_code == 401
    assert await status(second) == 200

    reused = await refresh(first["refresh_token"])
    assert (reused.status_code, list(reused.json())) == (401, ["detail"])
    assert await status(second) == 401
    assert (await refresh(second["refresh_token"])).status_code == 401
    assert (await broker.client.post(REFRESH, json={})).status_code == 400


async def test_other_pages_log_in_for_tokens_only_from_allowed_origins(broker: ApiBroker) -> None:
    """A form needs no permission of a browser: else a page could guess passwords with the address of its visitors."""
    await broker.services.users.add("ada", PASSWORD)
    form = {"content": b"username=ada", "headers": {"Content-Type": "application/x-www-form-urlencoded"}}
    allowed = {"Origin": "https://ui.example"}
    cases = (*SITES, (allowed, True), ({**allowed, "Sec-Fetch-Site": "cross-site"}, True))
    for headers, is_own in cases:
        passes = is_own or not {"Sec-Fetch-Site", "Origin"} & headers.keys()
        for path, body in ((TOKENS, form), (TOKENS, {"json": {}}), (REGISTER, {"json": {}})):
            both = {**headers, **body.get("headers", {})}  # type: ignore[dict-item]
            answer = await broker.client.post(path, **{**body, "headers": both})  # type: ignore[arg-type]
            assert answer.status_code == (400 if passes else 403), (path, headers)
    async with browser(broker) as page:
        await page.post(LOGIN, json=ADA)
        assert (await page.post(TOKENS, json=ADA)).status_code == 200
        assert (await me_of(page))["authenticated"] is True  # tokens replace no cookie


# -- both


async def test_guesses_count_together_in_all_dialects(broker: ApiBroker, clock: ManualClock) -> None:
    """One series for an account and an address, whatever the route; the right password counts nothing."""
    await broker.services.users.add("ada", PASSWORD)
    async with browser(broker) as page:
        for number in range(SERIES.free_attempts):
            path = ("/api/login", LOGIN, TOKENS)[number % 3]
            assert (await page.post(path, json={**ADA, "password": WRONG})).status_code == 401
        before = count_hashes(broker.services)
        for path in (TOKENS, LOGIN, "/api/login"):
            answer = await page.post(path, json=ADA)
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "1"), path
        assert count_hashes(broker.services) == before
        clock.advance(1.0)
        assert (await page.post(TOKENS, data={**ADA})).status_code == 200
        assert (await page.post(LOGIN, json=ADA)).status_code == 200


async def test_known_and_unknown_users_get_the_same_answer_for_the_same_work(broker: ApiBroker) -> None:
    await broker.services.users.add("ada", PASSWORD)
    for path in (LOGIN, TOKENS):
        answers = []
        for name in ("ada", "nobody", "n\u0000", "x" * 256):
            before = count_hashes(broker.services)
            answer = await broker.client.post(path, json={"username": name, "password": WRONG}, headers=OWN)
            assert count_hashes(broker.services) == before + 1, name
            headers = {key: value for key, value in answer.headers.items() if key != "x-request-id"}
            answers.append((answer.status_code, answer.content, headers))
        assert answers.count(answers[0]) == 4, answers
        assert answers[0][0] == 401


async def test_used_up_quota_says_what_is_left_and_when_it_resets(broker: ApiBroker) -> None:
    tokens = (await broker.client.post(REGISTER, json=ADA)).json()
    for left in (1, 0):
        ordered = await broker.client.post(
            "/api/v1/images/generate", json={"prompt": f"a fox {left}"}, headers=bearer(tokens)
        )
        assert ordered.status_code == 200, ordered.text
        me = (await broker.client.get(S4_ME, headers=bearer(tokens))).json()
        assert me["quota"]["images"]["left"] == left
    assert (await me_of(broker.client, **bearer(tokens)))["quota"]["images"]["left"] == 0
    for path in ("/api/v1/images/generate", "/v1/generate"):
        refused = await broker.client.post(path, json={"prompt": "another fox"}, headers=bearer(tokens))
        assert (refused.status_code, list(refused.json())) == (429, ["detail"]), refused.text
        assert int(refused.headers["retry-after"]) > 0
        assert f"It resets at {MIDNIGHT}" in refused.text


async def test_list_of_the_image_service_is_the_users_own(tmp_path: Path) -> None:
    """Also for an admin who may read the content of others (S4-18)."""
    async with open_api(tmp_path, admin_sees_content=True) as broker:
        ids = {name: (await broker.services.users.add(name, PASSWORD)).id for name in ("ada", "bob")}
        await broker.services.users.change(ids["bob"], UserChanges(is_admin=True))
        for number, owner in enumerate((ids["ada"], ids["bob"], "house:local"), 1):
            await broker.add_task(number=number, caller=owner)
        for name, owner in ids.items():
            tokens = (await broker.client.post(TOKENS, json={**ADA, "username": name})).json()
            listed = (await broker.client.get("/api/v1/images/list", headers=bearer(tokens))).json()["generations"]
            assert [one["user_id"] for one in listed] == [owner]
