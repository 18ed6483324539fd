"""One route: the newest task, or the newest with a status."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from starlette.requests import Request
from starlette.responses import Response

from broker.api.http.endpoint import Endpoint, json_success, principal_of
from broker.api.http.query import QueryModel, one_of_text
from broker.api.http.responses import json_response
from broker.errors import ApiError
from broker.presenter import ResponseModel, TaskId, TaskStatus
from broker.tasks.queries import TaskQueries
from storage.states import STATUS_FILTERS


class NewestQuery(QueryModel):
    """Query parameters of the route."""

    status: Annotated[str | None, one_of_text(STATUS_FILTERS)] = None


class NewestTask(ResponseModel):
    """Response of the route."""

    id: TaskId
    status: TaskStatus


@dataclass(frozen=True, kw_only=True)
class NewestRoute:
    """The handler, and the part that it uses."""

    queries: TaskQueries

    def endpoints(self) -> list[Endpoint]:
        """Declare the route; the router checks its access before the handler runs."""
        return [
            Endpoint(
                "GET",
                "/api/newest",
                self.get_newest,
                access="caller",
                tag="tasks",
                query=NewestQuery,
                responses={200: json_success("the newest task", NewestTask)},
                errors=("task_not_found",),
            )
        ]

    async def get_newest(self, request: Request) -> Response:
        """Get the newest task."""
        query = NewestQuery.read(request)
        scope = principal_of(request).scope
        for task in await self.queries.list_newest(scope, status=query.status, limit=1, before=None):
            return json_response(NewestTask(id=task.id, status=task.status).to_document())
        raise ApiError("task_not_found", "No task has this status.")
