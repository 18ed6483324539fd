"""Costs over HTTP, for operators: what attempts were estimated at, and what they cost, as JSON or CSV."""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Annotated, Any, Final, cast, get_args

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from broker.api.http.endpoint import TEXT, Endpoint, SuccessResponse
from broker.api.http.query import EMPTY, ParsedText, QueryModel, one_of_text
from broker.api.http.responses import DataResponse, data_response
from broker.clock import Clock, day, iso
from broker.monitoring.cost_sums import CostSums
from broker.ordering.budgets import BudgetState, DailyBudget
from broker.orders import USD_DIGITS
from broker.presenter import Absent, Moment, OneOf, ResponseModel
from storage.accounts.owners import Owners
from storage.ids import DELETED_OWNER
from storage.ledger import CostSum, Group
from storage.limits.budgets import MICROS_PER_USD

GROUPS: Final[tuple[Group, ...]] = get_args(Group)
DEFAULT_DAYS: Final = 30
EPOCH: Final = date(1970, 1, 1)
CSV_TYPE: Final = "text/csv"


# -- models


def _parse_date(text: str) -> date:
    try:
        if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
            raise ValueError
        return date.fromisoformat(text)
    except ValueError:
        raise ValueError("must be a date like 2026-11-20") from None


_DATE_TEXT: Final = ParsedText(_parse_date, {"anyOf": [{"type": "string", "format": "date"}, EMPTY]})


class CostQuery(QueryModel):
    by: Annotated[Group, one_of_text(GROUPS), Field(description="one row for each")] = "day"
    since: Annotated[
        date | None, _DATE_TEXT, Field(description=f"first day (UTC); by default {DEFAULT_DAYS} days ago")
    ] = None
    format: Annotated[str, one_of_text(("json", "csv")), Field(description="csv: a table without total")] = "json"


class BilledCounts(ResponseModel):
    """Attempts by what is known about their billing."""

    yes: int
    no: int
    unknown: int


class CostRow(ResponseModel):
    name: Annotated[str, Field(description="day (UTC), model, provider or user")]
    owner: Annotated[
        str | Absent, Field(description="by user: the user's id; names may be equal to those of API keys")
    ] = None
    attempts: int
    billed: BilledCounts
    duplicates: Annotated[int, Field(description="second results of one order")]
    cost: Annotated[
        float | None, Field(description="in the provider's unit; null for several units, and where no price is known")
    ]
    unit: str | None
    usd_estimated: Annotated[float, Field(description="all attempts, by the price tables at their submission")]
    usd: Annotated[float, Field(description="what was certainly billed")]
    usd_unknown: Annotated[float, Field(description="estimate of the attempts whose billing is unknown")]
    unpriced: Annotated[
        int, Field(description="attempts that were or may have been billed, at an unknown price: 0 USD in these sums")
    ]


class BudgetStatus(ResponseModel):
    """The daily budget; both amounts are of today (UTC)."""

    limit_usd: float
    used_usd: Annotated[float, Field(description="spent, or reserved by orders that have not ended")]
    resets_at: Moment


class CostsData(ResponseModel):
    by: Annotated[str, OneOf(GROUPS)]
    since: Annotated[str, Field(json_schema_extra={"format": "date"})]
    rows: Annotated[list[CostRow], Field(description="with the operator's keys")]
    total: CostRow
    own_rows: Annotated[list[CostRow], Field(description="with keys of users, who pay them: in no budget")]
    own_total: CostRow
    budget: Annotated[BudgetStatus | None, Field(description="null without BROKER_DAILY_BUDGET")]


# -- handlers


@dataclass(frozen=True, kw_only=True)
class CostRoutes:
    """For operators only: costs of all callers."""

    clock: Clock
    sums: CostSums
    owners: Owners
    budget: DailyBudget
    unit_of: Callable[[str], str | None]
    """Provider → unit of its costs; None if unknown."""

    def endpoints(self) -> list[Endpoint]:
        costs = SuccessResponse(text="the costs", content={"application/json": DataResponse[CostsData], CSV_TYPE: TEXT})
        return [
            Endpoint(
                "GET",
                "/api/costs",
                self.get_costs,
                access="admin",
                tag="operators",
                query=CostQuery,
                responses={200: costs},
            )
        ]

    async def get_costs(self, request: Request) -> Response:
        """Get what attempts cost.

        Of tasks that exist and of those deleted within the last 400 days, each attempt once. The invoices of the
        providers lie between `usd` and `usd` + `usdUnknown`, apart from the attempts that are `unpriced`.
        """
        query = CostQuery.read(request)
        since = query.since or day(self.clock.now()) - timedelta(days=DEFAULT_DAYS)
        sums = await self.sums.read(query.by, since_day=(since - EPOCH).days)
        house, own = ([one for one in sums if one.is_own == is_own] for is_own in (False, True))
        names = await self.owners.read_names({str(one.name) for one in sums}) if query.by == "user" else {}
        rows, own_rows = self._make_rows(house, query.by, names), self._make_rows(own, query.by, names)
        if query.format == "csv":
            text = write_csv(query.by, rows, own_rows)
            return Response(text, media_type=CSV_TYPE, headers={"cache-control": "no-store"})
        return data_response(
            CostsData(
                by=query.by,
                since=since.isoformat(),
                rows=rows,
                total=self._make_row("total", house),
                own_rows=own_rows,
                own_total=self._make_row("total", own),
                budget=_budget_status(await self.budget.read_state()),
            )
        )

    def _make_rows(self, sums: Sequence[CostSum], by: Group, names: Mapping[str, str]) -> list[CostRow]:
        """Return a row for each group, in order. names: of the owners, by user."""
        groups = defaultdict[str, list[CostSum]](list)
        for one in sums:  # users without an account are one owner, also while their data is being deleted
            is_deleted = names.get(str(one.name)) == DELETED_OWNER
            groups[DELETED_OWNER if is_deleted else _name(one.name, by)].append(one)
        rows = [
            self._make_row(names.get(name, name), group, name if by == "user" else None)
            for name, group in groups.items()
        ]
        return sorted(rows, key=lambda row: (row.name, row.owner or ""))

    def _make_row(self, name: str, sums: Iterable[CostSum], owner: str | None = None) -> CostRow:
        group = list(sums)
        counts = {billed: _total(group, "attempts", billed) for billed in BilledCounts.model_fields}
        units = {self.unit_of(one.provider) for one in group}
        unit = units.pop() if len(units) == 1 else None
        unpriced = _total(group, "unpriced")
        is_known = unit is not None and not (unpriced and not _total(group, "cost"))
        return CostRow(
            name=name,
            owner=owner,
            attempts=_total(group, "attempts"),
            billed=BilledCounts(**counts),
            duplicates=_total(group, "duplicates"),
            cost=_total(group, "cost") if is_known else None,
            unit=unit,
            usd_estimated=_total(group, "usd_estimated"),
            usd=_total(group, "usd"),
            usd_unknown=_total(group, "usd_estimated", "unknown"),
            unpriced=unpriced,
        )


def write_csv(by: str, rows: Sequence[CostRow], own_rows: Sequence[CostRow]) -> str:
    """Return rows as CSV with a header, one line each; those with keys of users are last.

    A spreadsheet computes a cell that begins like a formula, so a name that does has an apostrophe before it.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    amounts = ("usd_estimated", "usd", "usd_unknown")
    counts = tuple(BilledCounts.model_fields)
    titles = [by, "attempts", *(f"billed_{name}" for name in counts), "duplicates", "cost", "unit"]
    writer.writerow([*titles, *amounts, "unpriced", "keys_of"])
    for keys_of, row in (*(("operator", row) for row in rows), *(("users", row) for row in own_rows)):
        billed = [getattr(row.billed, name) for name in counts]
        usd = [f"{getattr(row, name):.{USD_DIGITS}f}" for name in amounts]
        cost = [row.cost, row.unit, *usd, row.unpriced]
        writer.writerow([_csv_text(row.name), row.attempts, *billed, row.duplicates, *cost, keys_of])
    return text.getvalue()


def _csv_text(name: str) -> str:
    return f"'{name}" if name.startswith(("=", "+", "-", "@")) else name


def _total(sums: Iterable[CostSum], field: str, billed: str | None = None) -> Any:
    """Return the sum of a field, of those with one billing or of all."""
    return round(sum(getattr(one, field) for one in sums if billed in {None, one.billed}), USD_DIGITS)


def _name(name: str | int, by: Group) -> str:
    return (EPOCH + timedelta(days=cast("int", name))).isoformat() if by == "day" else str(name)


def _budget_status(state: BudgetState | None) -> BudgetStatus | None:
    if state is None:
        return None
    return BudgetStatus(
        limit_usd=state.limit_micros / MICROS_PER_USD,
        used_usd=state.used_micros / MICROS_PER_USD,
        resets_at=iso(state.resets_at),
    )
