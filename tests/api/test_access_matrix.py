"""Every route × every object × every principal, and that the matrix notices a route that forgets its check."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from broker.api.http.auth import Authenticator
from broker.api.http.endpoint import Dialect, Endpoint
from broker.api.http.responses import ErrorResponse, error_response, json_response
from broker.principal import Principal, house_principal
from broker.services import Services
from storage.sql.scope import EVERYTHING
from tests.support.access_matrix import Cell, matrix_lines, open_world, run_matrix

pytestmark = pytest.mark.anyio


def problems(cells: Sequence[Cell]) -> set[tuple[str, str]]:
    return {(cell.principal, cell.problem) for cell in cells if cell.problem}


async def test_nobody_reaches_an_object_of_another_owner(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        cells = await run_matrix(world)
    assert problems(cells) == set(), "\n".join(matrix_lines(cells)[-30:])
    assert len(cells) > 1_000


def leaking_dialect(services: Services, *, path: str, access: Any = "caller", is_open: bool = False) -> Dialect:
    """Return a dialect with one route that forgets to limit its query. is_open: the dialect takes all for admins."""

    async def everyone(_: HTTPConnection) -> Principal | None:
        return house_principal("anyone", sees_content=False)

    async def leak(request: Request) -> Response:
        """Get a task of anyone."""
        task = await services.queries.get(request.path_params["id"], EVERYTHING)
        return json_response({"prompt": task.prompt})

    return Dialect(
        name="leak",
        authenticate=everyone if is_open else Authenticator.from_services(services).authenticate,
        render_error=partial(error_response, services.presenter.messages),
        error_model=ErrorResponse,
        endpoints=[Endpoint("GET", path, leak, access=access, tag="leak", responses={})],
    )


async def run_leak(folder: Path, **leak: Any) -> set[tuple[str, str]]:
    async with open_world(folder) as world:
        world.broker.mount(extra_dialects=(partial(leaking_dialect, **leak),))
        return problems(await run_matrix(world, only=leak["path"]))


async def test_matrix_finds_a_route_without_a_scope(tmp_path: Path) -> None:
    found = await run_leak(tmp_path, path="/api/task/{id}/leak")
    assert found >= {(name, "a foreign object is not 404") for name in ("other", "house", "admin")}


async def test_matrix_finds_a_dialect_that_knows_everyone(tmp_path: Path) -> None:
    found = await run_leak(tmp_path, path="/api/task/{id}/leak", is_open=True)
    assert found >= {(name, "open without a login") for name in ("stranger", "expired", "disabled")}


async def test_matrix_finds_an_admin_route_that_is_open_to_users(tmp_path: Path) -> None:
    found = await run_leak(tmp_path, path="/api/task/{id}/leak", access="admin", is_open=True)
    assert found >= {(name, "admin access is wrong") for name in ("owner", "other")}


async def test_route_whose_objects_are_not_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="add it to KINDS"):
        await run_leak(tmp_path, path="/api/secrets/{id}")
