"""The newest tasks: by status, each page from an index; by words of the prompt and model, window by window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from storage.sql.database import Database
from storage.sql.pages import WINDOW_ROWS, Position, fetch_page, search_page
from storage.sql.rows import like_pattern
from storage.sql.scope import Scope
from storage.states import ACTIVE_STATUSES, STATUS_FILTERS
from storage.tasks import Task

NOT_EXPIRED: Final = "state <> 'expired'"


@dataclass(frozen=True)
class NewestTasks:
    """Pages of tasks that are not expired, newest first."""

    database: Database

    async def list_newest(self, scope: Scope, *, status: str | None, limit: int, before: Position | None) -> list[Task]:
        """Return one page, newest first; before: (created_at, id) of the last task of the previous page."""
        return await fetch_page(
            self.database,
            Task,
            "tasks",
            moment="+created_at" if status in ACTIVE_STATUSES else "created_at",
            before=before,
            limit=limit,
            conditions=STATUS_FILTERS[status] if status else (NOT_EXPIRED,),
            scope=scope,
        )

    async def search_newest(
        self,
        scope: Scope,
        *,
        status: str | None,
        limit: int,
        before: Position | None,
        model: str | None,
        words: Sequence[str],
        window: int = WINDOW_ROWS,
    ) -> tuple[list[Task], Task | None]:
        """Return those of the next `window` tasks that fit, newest first, as `search_page` does.

        words: all occur in the prompt, in upper or lower case.
        """
        params = {f"word{number}": like_pattern(word) for number, word in enumerate(words)}
        conditions = [f"lower(prompt) LIKE lower(:{name}) ESCAPE '!'" for name in params]
        conditions.append(f"(({') OR ('.join(STATUS_FILTERS[status])}))" if status else NOT_EXPIRED)
        if model is not None:
            conditions.append("model = :model")
            params["model"] = model
        return await search_page(
            self.database,
            Task,
            "tasks",
            moment="created_at",
            before=before,
            limit=limit,
            conditions=conditions,
            columns="state, attempt, ended_at, model, prompt",
            scope=scope,
            params=params,
            window=window,
        )
