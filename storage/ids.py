"""Formats of all ids, and the functions that make them."""

from __future__ import annotations

import re
import secrets
from typing import Final

TASK_ID: Final = re.compile(r"task_[0-9a-f]{32}")
BATCH_ID: Final = re.compile(r"batch_[0-9a-f]{32}")
CALLBACK_ID: Final = re.compile(r"callback_[0-9a-f]{24}")
EVENT_ID: Final = re.compile(r"evt_[0-9a-f]{32}")


def new_task_id() -> str:
    return f"task_{secrets.token_hex(16)}"


def new_batch_id() -> str:
    return f"batch_{secrets.token_hex(16)}"


def new_callback_id() -> str:
    return f"callback_{secrets.token_hex(12)}"


def new_file_id() -> str:
    return secrets.token_hex(16)


def new_file_owner() -> str:
    """Return a new owner of the bytes of an uploaded file."""
    return f"file_{secrets.token_hex(16)}"


def new_upload_id() -> str:
    return secrets.token_hex(16)


def new_upload_owner() -> str:
    """Return a new owner of the parts of a resumable upload."""
    return f"upload_{secrets.token_hex(16)}"


def reference_owner(batch_id: str) -> str:
    """Return the owner of the files of a batch's references: the batch, because its tasks may expire one by one."""
    return f"refs_{batch_id.rpartition('_')[2]}"


def owner_key(owner: str) -> tuple[str, str]:
    """Return the column of `tasks`, and its value, that an owner of files stands for: a task, or a batch."""
    number = owner.removeprefix("refs_")
    return ("id", owner) if number == owner else ("batch", f"batch_{number}")
