"""Formats of all ids, and the functions that make them."""

from __future__ import annotations

import re
import secrets
from typing import Final

TASK_ID: Final = re.compile(r"task_[0-9a-f]{32}")
BATCH_ID: Final = re.compile(r"batch_[0-9a-f]{32}")
CALLBACK_ID: Final = re.compile(r"callback_[0-9a-f]{24}")
EVENT_ID: Final = re.compile(r"evt_[0-9a-f]{32}")
USER_ID: Final = re.compile(r"user_[0-9a-f]{32}")
SESSION_ID: Final = re.compile(r"session_[0-9a-f]{24}")
CONVERSATION_ID: Final = re.compile(r"conv_[0-9a-f]{32}")
TURN_ID: Final = re.compile(r"turn_[0-9a-f]{32}")
API_KEY_ID: Final = re.compile(r"key_[0-9a-f]{24}")
PROVIDER_KEY_ID: Final = re.compile(r"pkey_[0-9a-f]{24}")


def new_task_id() -> str:
    return f"task_{secrets.token_hex(16)}"


def new_batch_id() -> str:
    return f"batch_{secrets.token_hex(16)}"


def new_callback_id(at: float) -> str:
    """Return an id that begins with the moment of arrival in milliseconds.

    So the index of the ids is written at its end, not in another of its pages for each callback.
    """
    return f"callback_{int(at * 1000):011x}{secrets.randbits(52):013x}"


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


HOUSE_PREFIX: Final = "house:"
"""Begins the owners that stand for the operator: configured keys, direct calls from this machine, anonymous access."""
DELETED_OWNER: Final = "deleted"
"""Owner of what is kept about the tasks of deleted accounts: counts and amounts."""
SHOWN_DIGITS: Final = 8
"""Of a shortened id."""


def shorten_id(task_id: str) -> str:
    """Return the beginning of the id of a task: it tells tasks apart, and opens nothing."""
    prefix, _, number = task_id.partition("_")
    return f"{prefix}_{number[:SHOWN_DIGITS]}"


def new_user_id() -> str:
    """Return the id of a new user, which is also the owner of all that the user makes."""
    return f"user_{secrets.token_hex(16)}"


def new_session_id() -> str:
    """Return the public name of a new session; it opens nothing."""
    return f"session_{secrets.token_hex(12)}"


def new_api_key_id() -> str:
    """Return the public name of a new API key, which is also the owner of its tasks if it belongs to no user."""
    return f"key_{secrets.token_hex(12)}"


def new_provider_key_id() -> str:
    """Return the public name of a new provider key of a user."""
    return f"pkey_{secrets.token_hex(12)}"


def new_account_name(provider: str) -> str:
    """Return the name of a user's new account at a provider, as it stands in tasks and attempts."""
    return f"{provider}{ACCOUNT_MARK}{secrets.token_hex(8)}"


def provider_of(account: str) -> str:
    """Return the provider of an account in tasks and attempts; an account of the operator has its name."""
    return account.partition(ACCOUNT_MARK)[0]


def is_own_account(account: str) -> bool:
    """Return whether an account belongs to a user, who pays what is ordered there."""
    return ACCOUNT_MARK in account


def shown_account(account: str) -> str:
    """Return an account as people read it."""
    return f"{provider_of(account)} (own key)" if is_own_account(account) else account


ACCOUNT_MARK: Final = "@"
"""Separates a provider from the number of a user's account there."""


def new_conversation_id() -> str:
    return f"conv_{secrets.token_hex(16)}"


def new_turn_id() -> str:
    return f"turn_{secrets.token_hex(16)}"
