"""`broker costs`: what orders cost, by day, model, provider or caller."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from broker.api.admin.costs import CostRow, CostsData, write_csv
from broker.cli.connection import Document, show_document
from broker.cli.console import print_line, print_note

Column = tuple[str, Callable[[CostRow], str]]


async def show_costs(*, by: str, since: str | None, as_csv: bool, as_json: bool) -> None:
    """Print the costs since a day as a table, CSV or JSON. by: what a row stands for."""
    print_text = _print_csv if as_csv else _print_costs
    await show_document("/api/costs", print_text, as_json=as_json, filters={"by": by, "since": since})


def _print_csv(document: Document) -> None:
    costs = CostsData.model_validate(document["data"])
    print(write_csv(costs.by, costs.rows, costs.own_rows), end="", flush=True)


def _print_costs(document: Document) -> None:
    costs = CostsData.model_validate(document["data"])
    columns: list[Column] = [
        (costs.by, lambda row: row.name),
        ("attempts", lambda row: str(row.attempts)),
        ("billed", lambda row: str(row.billed.yes)),
        ("free", lambda row: str(row.billed.no)),
        ("unknown", lambda row: str(row.billed.unknown)),
        ("duplicates", lambda row: str(row.duplicates)),
        ("cost", lambda row: "" if row.cost is None else f"{row.cost:g} {row.unit}"),
        ("USD estimated", lambda row: f"{row.usd_estimated:.4f}"),
        ("USD", lambda row: f"{row.usd:.4f}"),
        ("USD unknown", lambda row: f"{row.usd_unknown:.4f}"),
        ("unpriced", lambda row: str(row.unpriced)),
    ]
    if not costs.rows:
        whose = " with the operator's keys" if costs.own_rows else ""
        print_note(f"No order was submitted{whose} since {costs.since}.")
    else:
        _print_table(columns, [*costs.rows, costs.total])
    if costs.own_rows:
        print_line("With keys of users, who pay them:")
        _print_table(columns, [*costs.own_rows, costs.own_total])
    if costs.budget is not None:
        budget = costs.budget
        print_line(f"Budget: {budget.used_usd:g} of {budget.limit_usd:g} USD used, until {budget.resets_at}")


def _print_table(columns: Sequence[Column], rows: Sequence[CostRow]) -> None:
    lines = [[title for title, _ in columns], *([text(row) for _, text in columns] for row in rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    for first, *others in lines:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        print_line("  ".join([first.ljust(widths[0]), *cells]))
