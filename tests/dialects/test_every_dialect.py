"""What holds for every dialect, read from the endpoint lists: access, error shapes, and generated requests."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import schemathesis
from pydantic import SecretStr

from broker.accounts.users import UserChanges
from broker.api.http.endpoint import Dialect, Endpoint
from broker.sandbox.engine import Options
from storage.sql.scope import Scope
from tests.accounts.test_api_keys import add_user
from tests.support.api import ApiBroker, open_api
from tests.support.brokers import RunningBroker, open_broker
from tests.support.fuzzing import AUTHORIZED, KEY, base_config, dialects_of, execute, report_lines

pytestmark = pytest.mark.anyio

STRANGER: Final = {"X-Forwarded-For": "8.8.8.8"}

PLACES: Final[Mapping[str, Any]] = {
    "Bearer": lambda key: {"headers": {"Authorization": f"Bearer {key}"}},
    "Token": lambda key: {"headers": {"Authorization": f"Token {key}"}},
    "Key": lambda key: {"headers": {"Authorization": f"Key {key}"}},
    "x-goog-api-key": lambda key: {"headers": {"x-goog-api-key": key}},
    "?key=": lambda key: {"params": {"key": key}},
}
"""Where a client may send its key → arguments of the request."""
UNDERSTOOD: Final[Mapping[str, tuple[str, ...]]] = {
    "native": (),
    "banana_service": (),
    "chat_service": (),
    "kie": (),
    "image_service": (),
    "replicate": ("Token",),
    "gemini": ("x-goog-api-key", "?key="),
    "openai": ("?key=",),
    "fal": ("Key",),
    "shared": ("Token", "Key", "x-goog-api-key", "?key="),
}
"""By dialect: places beside Bearer."""


def path_of(endpoint: Endpoint) -> str:
    return re.sub(r"\{[a-z_]+(:path)?\}", "nothing", endpoint.path)


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[ApiBroker]:
    async with open_api(tmp_path, api_keys=(SecretStr(KEY),)) as broker:
        yield broker


def keyed_endpoints(broker: ApiBroker) -> list[tuple[Dialect, Endpoint]]:
    return [(dialect, one) for dialect in dialects_of(broker) for one in dialect.endpoints if one.needs_key]


async def test_every_route_accepts_a_key_where_its_dialect_has_it_and_nowhere_else(broker: ApiBroker) -> None:
    """The requests have no body, so that the router alone answers."""
    for dialect, endpoint in keyed_endpoints(broker):
        accepted = {"Bearer", *UNDERSTOOD[dialect.name]}
        for place, send in PLACES.items():
            for key, is_known in ((KEY, True), ("wrong-key-of-a-caller", False)):
                answer = await broker.client.request(endpoint.method, path_of(endpoint), **send(key))
                is_open = answer.status_code != 401
                assert is_open == (is_known and place in accepted), (endpoint.method, endpoint.path, place, key)


async def test_api_key_is_accepted_by_every_dialect_until_its_rights_end(broker: ApiBroker) -> None:
    """In each place of each dialect, as the operator's key is; refused once it expired, or its user is gone."""
    services = broker.services
    users = [await add_user(services, name) for name in ("valid", "expired", "disabled", "deleted", "revoked")]
    keys = {user.name: (await services.key_service.add("a key", user=user, expires_days=9)).secret for user in users}
    of_nobody = (await services.key_service.add("a key", user=None)).secret
    owner = {user.name: user.id for user in users}
    await services.database.execute("UPDATE api_keys SET expires_at = 1 WHERE owner = :id", id=owner["expired"])
    await services.users.change(owner["disabled"], UserChanges(is_disabled=True))
    await services.database.execute("DELETE FROM users WHERE id = :id", id=owner["deleted"])
    await services.key_service.revoke("a key", Scope(owner=owner["revoked"]))
    first = {
        dialect.name: (dialect, one) for dialect, one in reversed(keyed_endpoints(broker)) if one.access == "caller"
    }
    assert set(first) == set(UNDERSTOOD)
    for dialect, endpoint in first.values():
        for place in ("Bearer", *UNDERSTOOD[dialect.name]):
            for name, key in {**keys, "of nobody": of_nobody}.items():
                answer = await broker.client.request(endpoint.method, path_of(endpoint), **PLACES[place](key))
                is_open = name in {"valid", "of nobody"}
                assert (answer.status_code not in {401, 403}) == is_open, (endpoint.path, place, name, answer.text)
                if not is_open:
                    assert answer.status_code == 401
                    dialect.error_model.model_validate(answer.json())


async def test_a_stranger_gets_an_error_in_the_shape_of_the_dialect(broker: ApiBroker) -> None:
    for dialect, endpoint in keyed_endpoints(broker):
        answer = await broker.client.request(endpoint.method, path_of(endpoint), headers=STRANGER)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), endpoint.path
        dialect.error_model.model_validate(answer.json())
        assert "BROKER_API_KEYS" in answer.text


async def test_a_wrong_method_and_a_body_that_is_not_json_get_the_shape_of_the_dialect(broker: ApiBroker) -> None:
    for dialect in dialects_of(broker):
        for path in {path_of(one) for one in dialect.endpoints}:
            answer = await broker.client.request("TRACE", path, headers=AUTHORIZED)
            assert answer.status_code == 405, path
            dialect.error_model.model_validate(answer.json())
        for endpoint in dialect.endpoints:
            if "application/json" in endpoint.request and endpoint.access == "caller":
                headers = {**AUTHORIZED, "Content-Type": "application/json"}
                answer = await broker.client.request(
                    endpoint.method, path_of(endpoint), content=b'{"prompt": ', headers=headers
                )
                statuses = {200} if dialect.has_errors_in_success else set(range(400, 500))
                assert answer.status_code in statuses, (endpoint.path, answer.text)
                dialect.error_model.model_validate(answer.json())


@pytest.mark.parametrize("is_whole", [False, pytest.param(True, marks=pytest.mark.faults)])
async def test_generated_requests_are_answered_as_described(tmp_path: Path, is_whole: bool) -> None:
    """No 5xx, no undocumented status, header, type or key, and no endpoint open without a key.

    The whole has a request for each rule of each schema, and sequences of requests.
    """
    options = Options(duration=0, callback_spacing=0, creates_per_window=10_000)
    settings: dict[str, Any] = {"api_keys": (SecretStr(KEY),), "hold": 5}
    async with open_broker(tmp_path, options=options, **settings) as broker:
        document = await document_of_dialects(broker)
        fixed = base_config(str(broker.client.base_url), examples=3, seed=1)
        left_out = () if is_whole else ("coverage", "stateful")
        phases = {name: {"enabled": False} for name in left_out}
        config = schemathesis.Config.from_dict({**fixed, "phases": phases, "operations": run_of_operations(broker)})
        findings = await asyncio.to_thread(execute, document, config)
    assert findings.failures == [], "\n".join(report_lines(findings))
    described = {
        f"{method.upper()} {path}"
        for path, item in document["paths"].items()
        for method in item
        if method != "parameters"
    }
    assert {endpoint for endpoint, _ in findings.seen} == described


async def test_sentences_about_fields_have_the_names_of_the_dialect(broker: ApiBroker) -> None:
    prompt, ratio = {"prompt": "a fox"}, {"aspect_ratio": "9:1"}
    chat = {"messages": [{"role": "user", "content": "a fox"}], "modalities": ["image"], "image_config": ratio}
    asked: dict[str, tuple[dict[str, Any], str]] = {
        "/generate": ({**prompt, "number_of_images": 0}, "number_of_images must be"),
        "/api/v1/images/generate": (prompt | ratio, 'has no aspect_ratio "9:1"'),
        "/api/v1/jobs/createTask": ({"model": "nano-banana-2", "input": prompt | ratio}, 'has no aspect_ratio "9:1"'),
        "/v1/chat/completions": (chat, 'has no image_config.aspect_ratio "9:1"'),
        "/v1/models/google/nano-banana/predictions": ({"input": prompt | ratio}, 'has no aspect_ratio "9:1"'),
        "/fal/fal-ai/nano-banana": (prompt | ratio, 'has no aspect_ratio "9:1"'),
    }
    for path, (body, sentence) in asked.items():
        answer = await broker.client.post(path, json=body, headers=AUTHORIZED)
        assert sentence in answer.text.replace('\\"', '"'), (path, answer.text)


async def test_addresses_below_those_of_one_dialect_have_its_errors(broker: ApiBroker) -> None:
    answers = {path: await broker.client.get(path, headers=AUTHORIZED) for path in ("/v1beta/nothing", "/fal/nothing")}
    assert {answer.status_code for answer in answers.values()} == {404}
    assert answers["/v1beta/nothing"].json()["error"]["status"] == "NOT_FOUND"
    assert answers["/fal/nothing"].json()["error_type"] == "not_found"


async def test_a_model_without_a_name_is_not_the_default(broker: ApiBroker) -> None:
    body = {"contents": [{"parts": [{"text": "a red fox"}]}]}  # refused before it is an order, which would be held
    answers = [
        await broker.client.post("/v1beta/models/:generateContent", json=body, headers=AUTHORIZED),
        await broker.client.post("/v1/models/%20:streamGenerateContent", json=body, headers=AUTHORIZED),
        *[await broker.client.get(path, headers=AUTHORIZED) for path in ("/v1/models/", "/v1beta/models/")],
    ]
    assert [answer.status_code for answer in answers] == [404, 404, 404, 404]
    assert (await broker.client.get("/api/tasks", headers=AUTHORIZED)).json()["data"] == []


def run_of_operations(broker: RunningBroker) -> list[dict[str, Any]]:
    """Return what differs for some operations.

    A dialect without error statuses is not checked for one that rejects wrong data. Bodies that a model rejects are
    sent to the first of its endpoints only: they are most of the requests.
    """
    operations: dict[str, dict[str, Any]] = {}
    known: list[Any] = []
    for dialect in dialects_of(broker):
        for one in dialect.endpoints:
            changes: dict[str, Any] = {}
            if dialect.has_errors_in_success:
                changes["checks"] = {"negative_data_rejection": {"enabled": False}}
            if one.request and one.request in known:
                changes["generation"] = {"mode": "positive"}
            known.append(one.request)
            operations[one.operation_id] = changes
    return [{"include-operation-id": name, **changes} for name, changes in operations.items() if changes]


async def document_of_dialects(broker: RunningBroker) -> dict[str, Any]:
    """Return the OpenAPI document without the native endpoints, which have a test of their own."""
    answer = await broker.client.get("/openapi.json", headers=AUTHORIZED)
    assert answer.status_code == httpx.codes.OK
    document: dict[str, Any] = answer.json()
    native = {one.path for dialect in dialects_of(broker) if dialect.name == "native" for one in dialect.endpoints}
    document["paths"] = {path: item for path, item in document["paths"].items() if path not in native}
    return document
