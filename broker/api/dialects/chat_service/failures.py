"""Failures of tasks as the chat service tells them: with a hint what to change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from broker.api.shared.task_errors import completed_tasks
from broker.errors import FailedTask
from broker.i18n import Language, Messages
from storage.tasks import Task

NO_IMAGE_STATUS: Final = 502
_HINTS: Final = {"no_image": "no_image_hint", "provider_auth": "google_key_hint"}
"""Keys of messages by the code of the failure."""


def completed_or_hint(tasks: Sequence[Task], messages: Messages, language: Language) -> list[Task]:
    """Return the tasks of an order that have images. Raises the error of the first one, with a hint, if none has."""
    try:
        return completed_tasks(tasks, messages, language)
    except FailedTask as error:
        hint = _HINTS.get(error.code)
        if hint is None:
            raise
        raise FailedTask(
            error.code,
            f"{error.message} {messages.get(hint, language)}",
            status=NO_IMAGE_STATUS if error.code == "no_image" else error.status,
            task_id=error.task_id,
            billed=error.billed,
            retryable=error.retryable,
        ) from None
