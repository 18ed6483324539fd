"""The quotas of the sender of a request, as routes about one's own account show them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from broker.api.http.responses import QuotaStatus
from broker.api.shared.models import SnakeResponseModel
from broker.ordering.quotas import OwnerQuotas
from broker.presenter import Moment
from broker.principal import Principal

Quotas = Annotated[
    dict[str, QuotaStatus],
    Field(description="by name: images and usd per day (UTC), in_flight, pins, bytes; empty for the operator"),
]


class SnakeQuota(SnakeResponseModel):
    """The same in the dialects whose keys are in snake_case."""

    limit: Annotated[int | float | None, Field(description="null: no limit")]
    used: Annotated[int | float, Field(description="with what unfinished orders reserve")]
    left: int | float | None
    resets_at: Annotated[Moment | None, Field(description="of a daily quota; null for the others")]


SnakeQuotas = Annotated[dict[str, SnakeQuota], Field(description="as in GET /api/me; empty for the operator")]


async def read_quotas(quotas: OwnerQuotas, principal: Principal) -> dict[str, QuotaStatus]:
    """Return the value of a field of type `Quotas`."""
    states = await quotas.read_state(principal.owner)
    return {name: QuotaStatus.from_object(state) for name, state in states.items()}


async def read_snake_quotas(quotas: OwnerQuotas, principal: Principal) -> dict[str, SnakeQuota]:
    """Return the value of a field of type `SnakeQuotas`."""
    states = await quotas.read_state(principal.owner)
    return {name: SnakeQuota.from_object(state) for name, state in states.items()}
