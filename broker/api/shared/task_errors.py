"""The failure of a task as the error of a request, with a status on which no SDK pays twice.

SDKs repeat requests by themselves after 408, 409, 429 and 5xx. Those statuses are used only for failures that cost
nothing and that another try may cure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from broker.errors import ApiError, FailedTask
from broker.i18n import Language, Messages
from storage.tasks import Task

_REFUSED: Final = frozenset({"safety_input", "safety_output", "provider_rejected"})
"""The order itself is at fault: 400."""
_REPEATABLE_STATUS: Final = {"provider_rate_limited": 429, "storage_full": 507}
FAILED_STATUS: Final = 424
"""What the request depended on has failed (RFC 4918); no SDK repeats it."""
UNFINISHED_STATUS: Final = 504


def completed_tasks(tasks: Sequence[Task], messages: Messages, language: Language = "en") -> list[Task]:
    """Return the tasks of an order that have images. Raises the error of the first one if none has."""
    completed = [task for task in tasks if task.status == "completed"]
    if not completed:
        raise task_error(tasks[0], messages, language)
    return completed


def task_error(task: Task, messages: Messages, language: Language = "en") -> FailedTask:
    """Return the error of a task that ended without an image."""
    code = task.error_code or ("canceled" if task.status == "canceled" else "provider_error")
    sentence = messages.task_error(code, task.billed, language)
    if task.error_detail:
        sentence = f"{sentence} ({task.error_detail})"
    return FailedTask(
        code,
        sentence,
        status=_status(code, is_repeatable=task.error_retryable and task.billed == "no"),
        task_id=task.id,
        billed=task.billed,
        retryable=task.error_retryable,
    )


def _status(code: str, *, is_repeatable: bool) -> int:
    if code in _REFUSED:
        return 400
    return _REPEATABLE_STATUS.get(code, 503) if is_repeatable else FAILED_STATUS


def still_running(tasks: Sequence[str]) -> ApiError:
    """Return the error after the longest wait: it names the tasks, and how to go on."""
    named = ", ".join(tasks)
    return ApiError(
        "unavailable",
        f"The order is not finished yet. Nothing is lost: it goes on as {named}. Send the same request again to wait "
        f"for it, or poll /api/task/{tasks[0]}.",
        status=UNFINISHED_STATUS,
        retryable=True,
        message_key="still_running",
    )
