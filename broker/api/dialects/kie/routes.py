"""The routes of kie.ai: order a job, look at it, look at the credits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from broker.api.dialects.kie.errors import error_answer
from broker.api.dialects.kie.schemas import (
    KieCreateTask,
    KieCredits,
    KieRecordAnswer,
    KieRecordQuery,
    KieTaskCreated,
    KieTaskId,
)
from broker.api.http.addresses import own_base_url
from broker.api.http.endpoint import Endpoint, json_success, principal_of
from broker.api.http.request_body import read_json_model
from broker.api.http.responses import json_response
from broker.api.shared.held_answers import HeldAnswers, PlacedOrder
from broker.i18n import Messages
from broker.monitoring.balance import BalanceMonitor
from broker.notifications.formats.kie import CREDIT_USD, build_record
from broker.ordering.budgets import DailyBudget
from broker.ordering.quotas import OwnerQuotas
from broker.orders import UrlReference
from broker.tasks.queries import TaskQueries
from storage.sql.scope import is_private

MAX_BODY_BYTES: Final = 2 * 2**20
SPELLING: Final = {"aspectRatio": "input.aspect_ratio", "outputFormat": "input.output_format"}
SPELLING.update({name: f"input.{name}" for name in ("resolution", "seed", "google_search")})
"""Name of a field in the native API → in this one."""
SUCCESS_CODE: Final = 200
SUCCESS_MESSAGE: Final = "success"


@dataclass(frozen=True, kw_only=True)
class KieJobRoutes:
    held: HeldAnswers
    queries: TaskQueries
    messages: Messages
    public_base: Callable[[], str | None]
    budget: DailyBudget
    quotas: OwnerQuotas
    balances: BalanceMonitor
    usd_per_unit: Callable[[str], float | None]
    """Provider → value of its unit in USD; None if unknown."""

    def endpoints(self) -> list[Endpoint]:
        """Return the endpoint list. Errors about an order come with HTTP 200, so they are not listed."""
        endpoint = partial(Endpoint, access="caller", tag="kie.ai")
        return [
            endpoint(
                "POST",
                "/api/v1/jobs/createTask",
                self.create_task,
                operation_id="kieCreateTask",
                request={"application/json": KieCreateTask},
                responses={200: json_success("the order is durable, or refused", KieTaskCreated)},
                errors=("payload_too_large", "rate_limited", "quota_exceeded"),
            ),
            endpoint(
                "GET",
                "/api/v1/jobs/recordInfo",
                self.get_record,
                operation_id="kieRecordInfo",
                query=KieRecordQuery,
                responses={200: json_success("the job", KieRecordAnswer)},
                is_quiet=True,
            ),
            endpoint(
                "GET",
                "/api/v1/chat/credit",
                self.get_credits,
                operation_id="kieCredit",
                responses={200: json_success("the credits", KieCredits)},
            ),
        ]

    async def create_task(self, request: Request) -> Response:
        """Order an image in the way of kie.ai."""
        placed = await self._place(request)
        task = placed.tasks[0]
        created = KieTaskId(task_id=task, record_id=task)
        return json_response(KieTaskCreated(code=SUCCESS_CODE, msg=SUCCESS_MESSAGE, data=created).to_document())

    async def _place(self, request: Request) -> PlacedOrder:
        parsed = await read_json_model(request, MAX_BODY_BYTES, KieCreateTask)
        sources = [UrlReference(url=url) for url in parsed.input.references]
        order = parsed.to_order(own_base_url(request, self.public_base()), sources)
        return await self.held.place(request, order, is_held=False, ignored=parsed.ignored, spelling=SPELLING)

    async def get_record(self, request: Request) -> Response:
        """Get a job in the way of kie.ai."""
        task_id = KieRecordQuery.read(request).task_id
        if task_id is None:
            return error_answer(400, "taskId parameter is required")
        task = await self.queries.get(task_id, principal_of(request).scope)
        images = await self.queries.get_results(task)
        record = build_record(task, images, own_base_url(request, self.public_base()), self.messages)
        return json_response(KieRecordAnswer(code=SUCCESS_CODE, msg=SUCCESS_MESSAGE, data=record).to_document())

    async def get_credits(self, request: Request) -> Response:
        """Get what is left to spend, in credits of kie.ai.

        For the operator the rest of the daily budget or, without one, what the accounts at the providers have together;
        for a user the rest of the own quota of USD.
        """
        principal = principal_of(request)
        if is_private(principal.owner):
            usd = (await self.quotas.read_state(principal.owner))["usd"].left
            reason = "You have no quota of USD, so nothing is counted down."
        else:
            usd, reason = await self._left_usd(), "The balance is not known: no provider has reported one."
        if usd is None:
            return error_answer(505, reason)
        left = round(usd / CREDIT_USD, 2)
        return json_response(KieCredits(code=SUCCESS_CODE, msg=SUCCESS_MESSAGE, data=left).to_document())

    async def _left_usd(self) -> float | None:
        budget = await self.budget.read_usd()
        if budget:
            return max(0.0, budget["limit"] - budget["used"])
        known = [
            balance * value
            for (provider, _), balance in (await self.balances.latest()).items()
            if (value := self.usd_per_unit(provider)) is not None
        ]
        return sum(known) if known else None
