"""The attempts of a task, and why each provider was or was not chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from broker.api.admin.visibility import IsWithheld
from broker.api.http.endpoint import Endpoint, Parameter, json_success, principal_of
from broker.api.http.responses import DataResponse, data_response
from broker.errors import TASK_CODES
from broker.orders import USD_DIGITS
from broker.presenter import TASK_ID, CostData, Moment, OneOf, ResponseModel, TaskId, TaskStatus
from broker.tasks.queries import TaskQueries
from storage.attempts import Attempt, Attempts
from storage.ids import is_own_account, provider_of, shown_account

_TASK: Final = Parameter("id", "path", "the task's id", {"type": "string", "pattern": TASK_ID})
_OUTCOMES: Final = ("sent", "accepted", "refused", "failed", "succeeded", "unknown")


class TaskRoute(ResponseModel):
    provider: str
    own_key: Annotated[bool, Field(description="with the key of its owner")]
    candidate: bool
    reason: Annotated[str | None, Field(description="why it is none, or is tried later, or why the order moved here")]
    moved_at: Annotated[Moment | None, Field(description="when the order moved here; null: the routes of the order")]


class AttemptData(ResponseModel):
    number: int
    provider: str
    own_key: Annotated[bool, Field(description="with the key of its owner, who pays it")]
    key_id: Annotated[str, Field(description="of the key that it used; checks and cancels use the same")]
    job_id: Annotated[
        str | None, Field(description="the provider's name of the job; null without one, and if withheld")
    ]
    outcome: Annotated[str, OneOf(_OUTCOMES), Field(description="sent: its response is awaited")]
    code: Annotated[str, OneOf(tuple(sorted(TASK_CODES)))] | None
    provider_code: Annotated[str | None, Field(description="the provider's own word; null if withheld")]
    billed: Annotated[str, OneOf(("yes", "no", "unknown"))]
    cost: CostData | None
    duplicate: Annotated[bool, Field(description="its success was a second one of the order")]
    duplicate_cost: Annotated[CostData | None, Field(description="of a second job of this attempt")]
    sent_at: Moment
    ended_at: Moment | None
    learned_by: Annotated[str | None, Field(description="callback, check (the callback is missing) or poll")]


class TaskAttempts(ResponseModel):
    id: TaskId
    status: TaskStatus
    withheld: IsWithheld
    provider: str
    key_id: Annotated[str | None, Field(description="of the current attempt")]
    candidates: Annotated[list[str], Field(description="providers that may still get the order, the next one first")]
    routes: Annotated[list[TaskRoute], Field(description="every provider at the order, then each move to another")]
    attempts: list[AttemptData]


@dataclass(frozen=True, kw_only=True)
class AttemptRoutes:
    """For operators only: callers see neither keys nor the attempts before the last one.

    Of tasks of other accounts, what their providers say is withheld.
    """

    queries: TaskQueries
    attempts: Attempts
    unit_of: Callable[[str], str | None]
    """Provider → the unit of its prices."""

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint(
                "GET",
                "/api/task/{id}/attempts",
                self.list_attempts,
                access="admin",
                tag="operators",
                parameters=(_TASK,),
                responses={200: json_success("routes and attempts", DataResponse[TaskAttempts])},
                errors=("task_not_found", "task_expired"),
            )
        ]

    async def list_attempts(self, request: Request) -> Response:
        """List the attempts of a task.

        With the reason why each provider was or was not chosen.
        """
        principal = principal_of(request)
        task = await self.queries.get(request.path_params["id"], principal.oversight)
        attempts, is_withheld = await self.attempts.list_of_task(task.id), not principal.may_read(task.caller)
        if is_withheld:
            attempts = [replace(attempt, job_id=None, provider_code=None) for attempt in attempts]
        return data_response(
            TaskAttempts.from_object(
                task,
                withheld=is_withheld,
                provider=provider_of(task.provider),
                key_id=task.key_id or None,
                candidates=[shown_account(name) for name in task.candidates],
                routes=[_task_route(entry) for entry in task.routes],
                attempts=[self._attempt(attempt) for attempt in attempts],
            )
        )

    def _attempt(self, attempt: Attempt) -> AttemptData:
        return AttemptData.from_object(
            attempt,
            provider=provider_of(attempt.provider),
            own_key=is_own_account(attempt.provider),
            cost=self._cost(attempt, attempt.cost),
            duplicate=attempt.duplicate_result is not None,
            duplicate_cost=self._cost(attempt, attempt.duplicate_cost),
        )

    def _cost(self, attempt: Attempt, amount: float | None) -> CostData | None:
        if amount is None:
            return None
        usd = attempt.to_usd(amount)
        unit = self.unit_of(provider_of(attempt.provider))
        return CostData(amount=amount, unit=unit, usd=None if usd is None else round(usd, USD_DIGITS))


def _task_route(entry: Mapping[str, Any]) -> TaskRoute:
    account = entry["provider"]
    return TaskRoute(
        provider=provider_of(account),
        own_key=is_own_account(account),
        candidate=entry["candidate"],
        reason=entry["reason"],
        moved_at=entry.get("at"),
    )
