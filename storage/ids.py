"""Formats of all ids, the functions that make them, and random digits.

Ids of rows that every order adds, and names of images, begin with the moment in milliseconds: so the indexes of these
ids grow at their end, where random ids change another page for each row. 32 random digits (128 bits) follow where the
id gives access to something.
"""

from __future__ import annotations

import os
import re
from functools import partial
from typing import Final

TIME_DIGITS: Final = 11
"""Hex digits of the moment, in milliseconds since the epoch, with which an id begins; enough until the year 2527."""
NUMBER_DIGITS: Final = TIME_DIGITS + 32
"""Hex digits of an id that begins with its moment and gives access to something."""
_NUMBER: Final = rf"[0-9a-f]{{{NUMBER_DIGITS}}}"

TASK_ID: Final = re.compile(rf"task_{_NUMBER}")
BATCH_ID: Final = re.compile(rf"batch_{_NUMBER}")
CALLBACK_ID: Final = re.compile(r"callback_[0-9a-f]{24}")
EVENT_ID: Final = re.compile(r"evt_[0-9a-f]{32}")
USER_ID: Final = re.compile(r"user_[0-9a-f]{32}")
SESSION_ID: Final = re.compile(r"session_[0-9a-f]{24}")
CONVERSATION_ID: Final = re.compile(rf"conv_{_NUMBER}")
TURN_ID: Final = re.compile(rf"turn_{_NUMBER}")
API_KEY_ID: Final = re.compile(r"key_[0-9a-f]{24}")
PROVIDER_KEY_ID: Final = re.compile(r"pkey_[0-9a-f]{24}")
IMAGE_NAME: Final = re.compile(rf"(generated|reference)_{_NUMBER}\.(png|jpg|webp)")

_LATEST: Final = 16**TIME_DIGITS - 1
_POOL_DIGITS: Final = 32
_POOL_SIZE: Final = 128
_unused: Final[list[str]] = []
"""Random digits of the kernel that nothing has used yet. They are taken from it many at a time: each call lets another
thread take the interpreter. `list.pop` and `list.extend` are atomic, so any thread may use it."""
os.register_at_fork(after_in_child=_unused.clear)  # no two processes make the same ids


def random_digits(count: int) -> str:
    """Return hex digits that cannot be guessed. count: 32 at most, which are 128 bits."""
    try:
        return _unused.pop()[:count]
    except IndexError:
        first, *others = os.urandom(_POOL_DIGITS // 2 * _POOL_SIZE).hex(" ", _POOL_DIGITS // 2).split()
        _unused.extend(others)
        return first[:count]


def new_id(prefix: str, at: float, count: int = _POOL_DIGITS) -> str:
    """Return a new id that begins with a moment. at: seconds since the epoch. count: of its random digits."""
    try:
        digits = _unused.pop()  # as in `random_digits`: this call saves another one
    except IndexError:
        digits = random_digits(_POOL_DIGITS)
    return f"{prefix}_{int(at * 1000) & _LATEST:011x}{digits[:count]}"


new_task_id: Final = partial(new_id, "task")
new_batch_id: Final = partial(new_id, "batch")
new_callback_id: Final = partial(new_id, "callback", count=13)
new_conversation_id: Final = partial(new_id, "conv")
new_turn_id: Final = partial(new_id, "turn")


def time_digits(row_id: str) -> str:
    """Return the digits of the moment of an id that begins with it."""
    return row_id.partition("_")[2][:TIME_DIGITS]


def new_image_name(prefix: str, at: float, extension: str) -> str:
    """Return a new public name of an image, which gives access to it."""
    return f"{new_id(prefix, at)}.{extension}"


def new_file_id() -> str:
    return random_digits(32)


def new_file_owner() -> str:
    """Return a new owner of the bytes of an uploaded file."""
    return f"file_{random_digits(32)}"


def new_upload_id() -> str:
    return random_digits(32)


def new_upload_owner() -> str:
    """Return a new owner of the parts of a resumable upload."""
    return f"upload_{random_digits(32)}"


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
SHOWN_DIGITS: Final = TIME_DIGITS + 8
"""Of a shortened id; the other 24 random digits (96 bits) are hidden."""


def shorten_id(task_id: str) -> str:
    """Return the beginning of the id of a task: it tells tasks apart, and opens nothing."""
    prefix, _, number = task_id.partition("_")
    return f"{prefix}_{number[:SHOWN_DIGITS]}"


def new_user_id() -> str:
    """Return the id of a new user, which is also the owner of all that the user makes."""
    return f"user_{random_digits(32)}"


def new_session_id() -> str:
    """Return the public name of a new session; it opens nothing."""
    return f"session_{random_digits(24)}"


def new_api_key_id() -> str:
    """Return the public name of a new API key, which is also the owner of its tasks if it belongs to no user."""
    return f"key_{random_digits(24)}"


def new_provider_key_id() -> str:
    """Return the public name of a new provider key of a user."""
    return f"pkey_{random_digits(24)}"


def new_account_name(provider: str) -> str:
    """Return the name of a user's new account at a provider, as it stands in tasks and attempts."""
    return f"{provider}{ACCOUNT_MARK}{random_digits(16)}"


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
