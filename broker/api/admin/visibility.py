"""What an admin reads of the tasks of others: states, counts and costs; no prompt, no picture, no id that opens one.

The id of a task gives access to it, so that of another owner's task is shortened. BROKER_ADMIN_SEES_CONTENT shows all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Final

from pydantic import Field

from broker.errors import ApiError
from broker.principal import Principal
from storage.accounts.owners import Owners
from storage.ids import NUMBER_DIGITS, SHOWN_DIGITS, TASK_ID, shorten_id

ShownTaskId = Annotated[
    str,
    Field(
        pattern=f"^({TASK_ID.pattern}|task_[0-9a-f]{{{SHOWN_DIGITS}}}…)$",
        description="shortened for a task whose content is withheld, because the whole id opens it",
        examples=[f"task_{'0' * NUMBER_DIGITS}", f"task_{'0' * SHOWN_DIGITS}…"],
    ),
]
OwnerName = Annotated[
    str | None,
    Field(description="user or API key that the task belongs to, or the operator's own; null: not known"),
]
IsWithheld = Annotated[bool, Field(description="the content belongs to another account, and is not shown to admins")]

WITHHELD: Final = "withheld"
"""Replaces a text that may hold content."""


@dataclass(frozen=True, kw_only=True)
class Visibility:
    """What one principal reads of the rows of some owners."""

    principal: Principal
    names: Mapping[str, str]
    has_accounts: bool
    """Whether users or API keys exist, or did; only then can a row of an unknown owner be another's."""
    owners: Mapping[str, str] = field(default_factory=dict)
    """By task, where the rows name only that."""

    def owner_of(self, task_id: str | None) -> str | None:
        """Return the owner of a task that was asked for; None if it has no row any more."""
        return None if task_id is None else self.owners.get(task_id)

    def is_withheld(self, owner: str | None) -> bool:
        """Return whether the content of an owner's row is not shown. owner: None if it is not known."""
        if owner is None:
            return self.has_accounts and not self.principal.sees_content
        return not self.principal.may_read(owner)

    def owner_name(self, owner: str | None) -> str | None:
        return None if owner is None else self.names[owner]

    def task_id(self, task_id: str, owner: str | None) -> str:
        """Return the id of a task as it is shown."""
        return f"{shorten_id(task_id)}…" if self.is_withheld(owner) else task_id


@dataclass(frozen=True, kw_only=True)
class VisibilityReader:
    """Reads what the decision about a response needs."""

    owners: Owners

    async def of_tasks(self, principal: Principal, task_ids: Iterable[str | None]) -> Visibility:
        """Return the visibility of rows about these tasks. None: of a row about a task that is not known."""
        listed = list(task_ids)
        owners = await self.owners.of_tasks({task_id for task_id in listed if task_id is not None})
        visibility = await self.of_owners(principal, (owners.get(task_id or "") for task_id in listed))
        return replace(visibility, owners=owners)

    async def of_owners(self, principal: Principal, owners: Iterable[str | None]) -> Visibility:
        """Return the visibility of rows of these owners. None: of an owner that is not known."""
        listed = set(owners)
        known = {owner for owner in listed if owner is not None}
        return Visibility(
            principal=principal,
            names=await self.owners.read_names(known),
            has_accounts=None in listed and await self.owners.have_content(),
        )


def content_withheld() -> ApiError:
    return ApiError(
        "forbidden",
        "This is content of another account, which admins do not see. BROKER_ADMIN_SEES_CONTENT=true shows it.",
    )
