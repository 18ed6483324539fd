"""Settlement: what a task reserved when it was created becomes what its attempts say, once it has ended.

In the daily budget (`tasks.reserved`) and in the usage of its owner (`tasks.owner_images`, `tasks.owner_micros`). Both
change in the transaction that ends the task, and in each later one that corrects an attempt: the columns hold what the
task counts as now, so a settlement that is repeated changes nothing.

An attempt at an account of the owner's own (`<provider>@<key>`) costs neither.
"""

from __future__ import annotations

from typing import Final

from storage.limits.budgets import MICROS_PER_USD, day_of
from storage.sql.database import Statement
from storage.tasks import Task

_OWN_ACCOUNT: Final = "provider LIKE '%@%'"

# billed: what it cost; unknown: its price stays reserved; the provider bills a second job of the attempt too
_SPENT: Final = f"""(SELECT CAST(coalesce(sum(CASE WHEN {_OWN_ACCOUNT} THEN 0.0 ELSE
        round({MICROS_PER_USD} * coalesce(usd_per_unit, 0.0) * (
        CASE billed WHEN 'no' THEN 0.0 WHEN 'yes' THEN coalesce(cost, price, 0.0) ELSE coalesce(price, 0.0) END
        + coalesce(duplicate_cost, 0.0))) END), 0) AS BIGINT) FROM attempts WHERE task_id = :id)"""

# an image was made, or was or may have been paid for
_IMAGES: Final = f"""(SELECT CAST(count(*) AS BIGINT) FROM tasks WHERE id = :id AND EXISTS (SELECT 1 FROM attempts
        WHERE task_id = :id AND (outcome = 'succeeded' OR (billed <> 'no' AND NOT {_OWN_ACCOUNT}))))"""


def settle_task(task: Task) -> list[Statement]:
    """Return the statements that settle a task which has ended; none if it reserved nothing.

    They follow those that change the task and its attempts. The rows that tasks share are locked in the order of the
    create transaction: the owner's first, then the day's, for which all others wait.
    """
    day, settled = day_of(task.created_at), dict[str, str]()
    statements = []
    if task.owner_images is not None:
        settled |= {"owner_images": _IMAGES, "owner_micros": _SPENT}
        statements.append(
            Statement(
                sql=f"""UPDATE owner_usage SET
                    images = images + {_IMAGES} - (SELECT owner_images FROM tasks WHERE id = :id),
                    micros = micros + {_SPENT} - (SELECT owner_micros FROM tasks WHERE id = :id)
                    WHERE owner = :owner AND day = :day""",
                params={"id": task.id, "owner": task.caller, "day": day},
            )
        )
    if task.reserved is not None:
        settled["reserved"] = _SPENT
        statements.append(
            Statement(
                sql=f"""UPDATE budget_days SET used = used + {_SPENT} - (SELECT reserved FROM tasks WHERE id = :id)
                    WHERE day = :day""",
                params={"id": task.id, "day": day},
            )
        )
    if settled:
        columns = ", ".join(f"{name} = {sql}" for name, sql in settled.items())
        statements.append(Statement(sql=f"UPDATE tasks SET {columns} WHERE id = :id", params={"id": task.id}))
    return statements
