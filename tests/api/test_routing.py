"""The route of each path and method: the same that Starlette's router would find among all of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from broker.api.http.endpoint import EndpointRoute, EndpointRouter
from tests.support.api import open_api

pytestmark = pytest.mark.anyio

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW")
NEAR_MISSES = ("", "*", "/", "//", "/api", "/api/", "/api/task", "/nothing", "/v1beta/models", "/api/generate/image/")


async def test_every_path_has_the_route_that_the_whole_list_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def name_route(route: EndpointRoute, request: Request) -> Response:
        return Response(headers={"route": str(id(route)), "parameters": repr(dict(request.path_params))})

    async with open_api(tmp_path) as broker:
        routes = cast(list[EndpointRoute], cast(Starlette, broker.mounted.app).routes)
    router = EndpointRouter(routes)
    monkeypatch.setattr(EndpointRoute, "respond", name_route)
    for path in {*NEAR_MISSES, *(path for route in routes for path in example_paths(route.path))}:
        for method in METHODS:
            scope: Scope = {"type": "http", "path": path, "method": method, "headers": []}
            expected = first_match(routes, scope)
            if expected is None:
                with pytest.raises(Exception, match="404"):
                    router.find_route(scope)
                continue
            found = (await router.find_route(scope).respond(Request(scope))).headers
            assert (found["route"], found["parameters"]) == expected, (method, path)


async def test_the_router_of_all_routes_is_built_without_trying_each_for_each_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is part of every start."""
    tried, matches = 0, EndpointRoute.matches

    def count(route: EndpointRoute, scope: Scope) -> tuple[Match, Scope]:
        nonlocal tried
        tried += 1
        return matches(route, scope)

    async with open_api(tmp_path) as broker:
        routes = cast(list[EndpointRoute], cast(Starlette, broker.mounted.app).routes)
    monkeypatch.setattr(EndpointRoute, "matches", count)
    EndpointRouter(routes)
    assert tried <= 2 * len(routes)


def example_paths(pattern: str) -> Iterator[str]:
    for value in ("abc", "a/b", "a:b", "1", ""):
        yield re.sub(r"{[^}]*}", value, pattern)


def first_match(routes: list[EndpointRoute], scope: Scope) -> tuple[str, str] | None:
    matches: list[tuple[Match, EndpointRoute, Any]] = []
    for route in routes:
        match, found = route.matches(scope)
        if match is not Match.NONE:
            matches.append((match, route, found["path_params"]))
    matches.sort(key=lambda one: one[0] is not Match.FULL)
    return (str(id(matches[0][1])), repr(matches[0][2])) if matches else None


async def test_path_is_not_compared_with_routes_of_other_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = list[str]()
    matches = EndpointRoute.matches

    def count(route: EndpointRoute, scope: Scope) -> tuple[Match, Scope]:
        compared.append(route.path)
        return matches(route, scope)

    async with open_api(tmp_path) as broker:
        await broker.client.get("/api/models")
        monkeypatch.setattr(EndpointRoute, "matches", count)
        assert (await broker.client.get("/api/models")).status_code == 200
        assert compared == []
        await broker.client.get(f"/api/batch/batch_{'0' * 43}")
    assert all(path.startswith("/api/batch/") for path in compared)
    assert len(compared) <= 3
