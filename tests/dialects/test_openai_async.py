"""The asynchronous form of the OpenAI dialect, and the manifest of image studios, by plain HTTP."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs

import httpx
import pytest
from pydantic import SecretStr

from storage.states import TaskState
from tests.dialects.openai_sdk import broker_in, inputs_of, picture, size_of
from tests.support.api import a_task
from tests.support.brokers import RunningBroker

pytestmark = pytest.mark.anyio

KEYS: Final = ("first-key-of-a-caller-0123", "second-key-of-a-caller-0123")


def as_caller(number: int) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[number]}"}


async def poll(broker: RunningBroker, path: str, headers: dict[str, str], *, until: set[str]) -> dict[str, Any]:
    """Poll like a client, but wait in between until something has changed."""
    for task in (await broker.client.get("/api/tasks", headers=headers)).json()["data"]:
        await broker.wait_end(task["id"])
    answer = await broker.client.get(path, headers=headers)
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    document: dict[str, Any] = answer.json()
    assert document["status"] in until, document
    return document


async def test_task_is_accepted_polled_and_has_links(tmp_path: Path) -> None:
    async with broker_in(tmp_path, duration=0.15, api_keys=tuple(map(SecretStr, KEYS))) as broker:
        body = {"model": "gpt-image-2", "prompt": "a lighthouse", "size": "1536x1024", "n": 2}
        answer = await broker.client.post("/v1/images/generations/async", json=body, headers=as_caller(0))
        accepted = answer.json()
        assert answer.status_code == 202, answer.text
        assert re.fullmatch("imgtask_[0-9a-f]{43}", accepted["id"])
        assert accepted == {
            "id": accepted["id"],
            "task_id": accepted["id"],
            "object": "image.generation.task",
            "status": "processing",
            "created_at": accepted["created_at"],
            "expires_at": accepted["created_at"] + 24 * 3600,
            "poll_url": f"/v1/images/tasks/{accepted['id']}",
        }
        assert [answer.headers[name] for name in ("location", "retry-after", "cache-control")] == [
            *(accepted["poll_url"], "3", "no-store")
        ]
        early = await broker.client.get(accepted["poll_url"], headers=as_caller(0))
        assert (early.json()["status"], early.headers["retry-after"]) == ("processing", "3")
        relay = await broker.client.get(f"/v1/tasks/{accepted['id']}", headers=as_caller(0))
        assert relay.json()["status"] in {"pending", "processing"}

        done = await poll(broker, accepted["poll_url"], as_caller(0), until={"completed"})
        links = [image["url"] for image in done["result"]["data"]]
        assert (done["http_status"], done["image_url"], len(links)) == (200, links[0], 2)
        image = await broker.client.get(links[1])
        assert size_of(base64.b64encode(image.content).decode()) == (1248, 832)
        same = await poll(broker, f"/v1/tasks/{accepted['id']}", as_caller(0), until={"completed"})
        assert (same["results"], same["progress"], same["code"]) == (links, 100, 200)
        assert [one["url"] for one in same["data"]["result"]["images"]] == [[link] for link in links]
        by_task = await broker.client.get(f"/v1/tasks/{answer.headers['x-request-id']}", headers=as_caller(0))
        assert by_task.json()["results"] == links[:1]

        unknown = await broker.client.get(f"/v1/images/tasks/imgtask_{0:043x}", headers=as_caller(0))
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "task_not_found")
        gone = a_task(0, state=TaskState.EXPIRED, ended_at=0.0)
        await broker.services.database.transact(broker.services.tables.tasks.insert_task(gone))
        expired = await broker.client.get(f"/v1/images/tasks/{gone.id}", headers=as_caller(0))
        assert (expired.status_code, expired.json()["error"]["code"]) == (410, "task_expired")


async def test_failed_task_has_the_error_of_the_synchronous_route(tmp_path: Path) -> None:
    async with broker_in(tmp_path) as broker:
        for route, headers in (("generations/async", {}), ("generations", {"Prefer": "respond-async"})):
            body = {"prompt": f"a fox [mood:flagged] by {len(route)}"}
            answer = await broker.client.post(f"/v1/images/{route}", json=body, headers=headers)
            assert answer.status_code == 202, answer.text
            assert ("preference-applied" in answer.headers) == bool(headers)
            failed = await poll(broker, answer.json()["poll_url"], {}, until={"failed"})
            assert (failed["http_status"], failed["error"]["code"]) == (400, "safety_input")
            assert failed["error"]["message"]
            relay = await poll(broker, f"/v1/tasks/{answer.json()['id']}", {}, until={"failed"})
            assert relay["data"]["error"] == relay["error"] == failed["error"]
        refused = await broker.client.post(
            "/v1/images/edits/async", json={"prompt": "a fox", "stream": True, "image": "x"}
        )
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "stream")
        chat = {"modalities": ["image"], "messages": [{"role": "user", "content": "a fox"}]}
        answer = await broker.client.post("/v1/chat/completions", json=chat, headers={"Prefer": "respond-async"})
        await poll(broker, answer.json()["poll_url"], {}, until={"completed"})


# -- the manifest


def values_at(document: Any, path: str) -> Iterator[Any]:
    """Yield the values of a path as a studio reads it; `*` is every entry."""
    name, _, rest = path.partition(".")
    found = document if name == "*" else [document[name]]
    for value in found:
        yield from values_at(value, rest) if rest else [value]


def fill(template: Any, variables: dict[str, Any]) -> dict[str, Any]:
    filled = {key: variables.get(value) for key, value in template.items()}
    return {key: value for key, value in filled.items() if value is not None}


async def run_studio(
    client: httpx.AsyncClient, manifest: dict[str, Any], headers: dict[str, str], files: Any, wait: Callable[[], Any]
) -> bytes:
    """Make an image as an image studio does that knows nothing but the manifest."""
    profile, (provider,) = manifest["profiles"][0], manifest["customProviders"]
    submit, poll_rule = provider["editSubmit" if files else "submit"], provider["poll"]
    variables = {"$profile.model": profile["model"], "$prompt": "a fox", "$params.size": "auto", "$params.n": 1}
    body = fill(submit["body"], variables)
    named = [(submit["files"][0]["field"], file) for file in files]
    sent = {"data": body, "files": named} if submit["contentType"] == "multipart" else {"json": body}
    answer = await client.request(submit["method"], f"{profile['baseUrl']}/{submit['path']}", headers=headers, **sent)
    (task_id,) = values_at(answer.json(), submit["taskIdPath"])
    await wait()
    path = poll_rule["path"].replace("{task_id}", task_id)
    task = (await client.get(f"{profile['baseUrl']}/{path}", headers=headers)).json()
    assert next(values_at(task, poll_rule["statusPath"])) in poll_rule["successValues"], task
    (url,) = values_at(task, poll_rule["result"]["imageUrlPaths"][0])
    return (await client.get(url)).content


async def test_studio_makes_images_by_the_manifest_alone(tmp_path: Path) -> None:
    origin = "https://studio.example.com"
    async with broker_in(tmp_path, api_keys=(SecretStr(KEYS[0]),), cors_origins=(origin,)) as broker:
        link = f"/v1/images/manifest.json?key={KEYS[0]}"
        answer = await broker.client.get(link, headers={"Origin": origin})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, origin)
        manifest = answer.json()
        assert KEYS[0] not in answer.text
        assert [profile["model"] for profile in manifest["profiles"] if profile.get("isDefault")] == ["nano-banana"]
        imported = json.loads(parse_qs(manifest.pop("importQuery").removeprefix("?"))["settings"][0])
        assert imported == manifest

        async def wait() -> None:
            for task in (await broker.client.get("/api/tasks", headers=as_caller(0))).json()["data"]:
                await broker.wait_end(task["id"])

        for files in ([], [("a.png", picture(), "image/png"), ("b.png", picture("blue"), "image/png")]):
            made = await run_studio(broker.client, manifest, as_caller(0), files, wait)
            assert size_of(base64.b64encode(made).decode()) == (1024, 1024)
        assert [len(one.get("image_urls", [])) for one in await inputs_of(broker)] == [0, 2]
        assert (await broker.client.get("/v1/images/manifest.json")).status_code == 401
