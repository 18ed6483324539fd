"""The OpenAPI document is valid, has every endpoint, and agrees with the responses."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from broker.api.http.openapi import openapi_document
from broker.app import build_app
from broker.errors import STATUS_OF, TASK_CODES
from storage.states import TaskState
from tests.support.api import ApiBroker, open_api, png
from tests.support.clock import ManualClock
from tests.support.fuzzing import AUTHORIZED, Findings, endpoints_of, furnished, told, walk
from tests.support.servers import postgres

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parent.parent.parent
CREATE = "/api/generate/image"
HOOK = "/api/webhook/nano-banana"
FILES = {"swagger-ui-bundle.js": "javascript", "start.js": "javascript", "swagger-ui.css": "css"}
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


async def the_document(broker: ApiBroker) -> dict[str, Any]:
    answer = await broker.client.get("/openapi.json", headers=AUTHORIZED)
    assert answer.status_code == 200
    document: dict[str, Any] = answer.json()
    return document


# -- the document


async def test_the_description_is_valid_openapi(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        document = await the_document(broker)
        assert document["openapi"].startswith("3.1.")
        validate(document)


async def test_the_description_shows_which_endpoints_need_a_key(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        paths = (await the_document(broker))["paths"]
        assert sum(len(methods) for methods in paths.values()) == len(endpoints_of(broker))
        for endpoint in endpoints_of(broker):
            operation = paths[endpoint.path][endpoint.method.lower()]
            needs_key = endpoint.access in {"caller", "admin"}
            assert operation["security"] == ([{"key": []}] if needs_key else []), endpoint.path
            assert not needs_key or "401" in operation["responses"], endpoint.path


async def test_one_operation_id_for_two_endpoints_is_rejected(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        (native,) = build_app(broker.services).state.dialects
        with pytest.raises(ValueError, match="createImage is used twice"):
            openapi_document([native, native], version="1")


async def test_the_readme_lists_every_route(tmp_path: Path) -> None:
    """Its table of routes is read from the declared endpoints."""
    readme = (ROOT / "README.md").read_text("utf-8")
    table = readme.split("<!-- routes -->")[1].split("<!-- /routes -->")[0].strip()
    assert table == await route_table(tmp_path)


async def route_table(folder: Path) -> str:
    async with open_api(folder) as broker:
        lines = [
            f"| `{endpoint.method} {endpoint.path}` | {endpoint.summary} | {endpoint.access} |"
            for endpoint in endpoints_of(broker)
        ]
    return "\n".join(["| route | | access |", "|---|---|---|", *lines])


async def test_the_codes_are_a_closed_set(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        schemas = (await the_document(broker))["components"]["schemas"]
        assert set(schemas["ErrorResponse"]["properties"]["code"]["enum"]) == {*STATUS_OF, *TASK_CODES}
        assert set(schemas["TaskErrorDetail"]["properties"]["code"]["enum"]) == set(TASK_CODES)


async def test_what_the_page_offers_to_send_is_taken_and_costs_nothing(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        (example,) = (await the_document(broker))["components"]["schemas"]["OrderJson"]["examples"]
        before = await broker.stored_counts()
        assert (await broker.client.post(CREATE, json=example)).status_code == 200
        assert await broker.stored_counts() == before


async def test_the_description_is_asked_for_again_cheaply(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        first = await broker.client.get("/openapi.json")
        again = await broker.client.get("/openapi.json", headers={"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


# -- real answers


def held(document: dict[str, Any], method: str, template: str, answer: httpx.Response) -> None:
    """The answer's body is what the description promises for its status, and nothing else."""
    responses = document["paths"][template][method.lower()]["responses"]
    said = responses.get(str(answer.status_code)) or responses["5XX"]
    schema = said["content"]["application/json"]["schema"]
    errors = Draft202012Validator({**schema, "components": document["components"]}).iter_errors(answer.json())
    assert [error.message for error in errors] == [], (method, template, answer.text)


async def test_answers_are_what_the_description_says(tmp_path: Path) -> None:
    """One of each kind, made to be rich; the odd ones are left to the walk below."""
    async with furnished(tmp_path) as (broker, known):
        document = await the_document(broker)
        prompt = {"prompt": "x"}
        wishes: list[tuple[str, str, str, dict[str, Any], int]] = [
            ("POST", CREATE, CREATE, {"json": {**prompt, "n": 2, "seed": 1}}, 202),
            ("POST", CREATE, CREATE, {"files": [("image", ("a.png", png(), "image/png"))], "data": prompt}, 202),
            ("POST", CREATE, CREATE, {"json": {**prompt, "dryRun": True}}, 200),
            ("POST", CREATE, CREATE, {"json": {"prompt": "", "model": "sora"}}, 400),
            ("GET", "/api/tasks", "/api/tasks", {}, 200),
            ("GET", "/api/tasks", "/api/tasks?limit=2&status=failed", {}, 200),
            ("GET", "/api/models", "/api/models", {}, 200),
            ("GET", "/api/deliveries", "/api/deliveries", {}, 200),
            ("GET", "/api/deliveries/{id}", f"/api/deliveries/{known.deliveries[0]}", {}, 200),
            ("POST", "/api/deliveries/{id}/replay", f"/api/deliveries/{known.deliveries[0]}/replay", {}, 202),
            ("GET", "/api/callbacks", "/api/callbacks", {}, 200),
            ("GET", "/health", "/health", {}, 200),
            ("GET", "/ready", "/ready", {}, 200),
            ("GET", "/api/webhook/{provider}", "/api/webhook/kie", {}, 200),
            ("POST", HOOK, HOOK, {"json": {"task_id": known.tasks[2]}}, 200),
            ("DELETE", "/api/task/{id}", f"/api/task/{known.tasks[2]}", {}, 200),
            ("DELETE", "/api/task/{id}", f"/api/task/{known.tasks[2]}", {}, 409),
            *(("GET", "/api/task/{id}", f"/api/task/{task}", {}, 410 if task == known.tasks[-1] else 200)
              for task in known.tasks),
        ]  # fmt: skip
        for method, template, path, body, status in wishes:
            answer = await broker.client.request(method, path, headers=AUTHORIZED, **body)
            assert answer.status_code == status, (method, path, answer.text)
            held(document, method, template, answer)


async def test_a_broker_in_trouble_answers_as_described(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        document = await the_document(broker)
        broker.mount(clock=ManualClock(9e9))
        answer = await broker.client.get("/ready")
        assert answer.status_code == 503
        held(document, "GET", "/ready", answer)


# -- odd requests


def judged(broker: ApiBroker, findings: Findings) -> None:
    """Check that every endpoint was reached, with more than errors, and that nothing was found."""
    endpoints = {f"{endpoint.method} {endpoint.path}" for endpoint in endpoints_of(broker)}
    assert findings.failures == [], "\n".join(told(findings))
    assert {door for door, _ in findings.seen} == endpoints
    for door in endpoints:
        assert findings.statuses(door) & {200, 202, 206}, door
    assert {
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
        "response_headers_conformance",
        "negative_data_rejection",
        "ignored_auth",
        "unsupported_method",
    } <= set(findings.checks)


async def test_odd_requests_are_answered_as_described(tmp_path: Path) -> None:
    """No 5xx, no status, header, type or key that is not in the description, and no endpoint open without a key."""
    async with furnished(tmp_path) as (broker, known):
        judged(broker, await walk(broker, known, examples=8))


async def test_odd_requests_do_not_upset_postgres(tmp_path: Path, postgres: postgres.Postgres) -> None:
    """It is stricter about texts and numbers than SQLite."""
    async with furnished(tmp_path, database_url=await postgres.fresh()) as (broker, known):
        judged(broker, await walk(broker, known, examples=8, seed=2))


async def test_the_walk_finds_what_is_not_described(tmp_path: Path) -> None:
    """Here the responses lack a key that the description requires."""
    async with furnished(tmp_path) as (broker, known):
        document = await the_document(broker)
        document["components"]["schemas"]["TaskData"]["required"].append("texts")
        findings = await walk(broker, known, examples=1, document=document)
        assert any("response_schema_conformance" in failure and "texts" in failure for failure in findings.failures)


# -- for browsers


async def test_every_response_has_security_headers(tmp_path: Path) -> None:
    """Errors and malformed HTTP included; images and the page have headers of their own."""
    async with open_api(tmp_path, sockets=True, cors_origins=("https://app.example.com",)) as broker:
        task = await broker.add_task(state=TaskState.SUCCEEDED, ended_at=broker.services.clock.now())
        image = await broker.add_image(task.id, png())
        paths = ["/health", "/ready", "/metrics", "/api/tasks", "/api/models", "/openapi.json", "/docs", "/nope"]
        paths += [f"/api/task/{task.id}", f"/api/task/{task.id}/events", f"/uploads/images/{image.name}", "/api/task/x"]
        answers = [await broker.client.get(path) for path in paths]
        again = {"If-None-Match": answers[paths.index(f"/api/task/{task.id}")].headers["etag"]}
        answers += [await broker.client.get(f"/api/task/{task.id}", headers=again), await broker.client.put("/health")]
        answers.append(await broker.client.options(CREATE, headers={"Origin": "https://evil.example"}))
        for answer in answers:
            assert answer.headers.get_list("x-content-type-options") == ["nosniff"], answer.url
            assert answer.headers.get_list("referrer-policy") == ["no-referrer"], answer.url
            (policy,) = answer.headers.get_list("content-security-policy")
            assert policy.startswith("default-src 'none'"), answer.url
            assert "unsafe" not in policy
        no_http = (await broker.send_raw(b"BREW\r\n\r\n")).lower()
        assert b"content-security-policy: default-src 'none'" in no_http
        assert b"nosniff" in no_http


async def test_the_page_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    async with open_api(tmp_path, sockets=True) as broker:
        page = await broker.client.get("/docs")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert "://" not in page.text
        assert "script-src 'self';" in page.headers["content-security-policy"]
        for name, media_type in FILES.items():
            assert f'"docs/{name}"' in page.text
            answer = await broker.client.get(f"/docs/{name}")
            assert (answer.status_code, answer.headers["content-type"]) == (200, f"text/{media_type}; charset=utf-8")
            again = await broker.client.get(f"/docs/{name}", headers={"If-None-Match": answer.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
        for name in ("page.html", "LICENSE", "..%2f..%2fcatalog.toml", "swagger-ui"):
            assert (await broker.client.get(f"/docs/{name}")).status_code == 404


def test_what_the_page_is_made_of_has_its_licence_beside_it() -> None:
    folder = ROOT / "broker" / "web" / "docs" / "swagger-ui"
    assert "Apache License" in (folder / "LICENSE").read_text("utf-8")
    assert "SmartBear" in (folder / "NOTICE").read_text("utf-8")


def test_a_wheel_has_the_page_in_it() -> None:
    """Other files than Python are packed only if pyproject.toml names it."""
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["package-data"]
    packed = {path for pattern in patterns["broker"] for path in (ROOT / "broker").glob(pattern) if path.is_file()}
    assert packed == {path for path in (ROOT / "broker" / "web").rglob("*") if path.is_file()}


def seen_in_a_browser(url: str, profile: Path) -> tuple[str, str]:
    """The page as it is when its scripts have run, and what the browser had to say about it."""
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --virtual-time-budget=20000 --enable-logging=stderr"
    command = [str(BROWSER), *flags.split(), f"--user-data-dir={profile}", "--dump-dom", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    return done.stdout, done.stderr


@pytest.mark.skipif(BROWSER is None, reason="there is no browser on this machine")
async def test_a_browser_shows_the_page_without_a_complaint(tmp_path: Path) -> None:
    async with open_api(tmp_path / "data", sockets=True) as broker:
        url = f"http://127.0.0.1:{broker.port}/docs"
        shown, said = await asyncio.to_thread(seen_in_a_browser, url, tmp_path / "profile")
        assert "Order images" in shown
        assert all(f"operations-{one.tag}-{one.operation_id}" in shown for one in endpoints_of(broker))
        assert "CONSOLE" not in said, said
