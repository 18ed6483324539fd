"""Commands of the operator: received callbacks and sent webhooks."""

from __future__ import annotations

import re

from broker.cli.console import CommandError

_COLLECTIONS = {"hook": "/api/callbacks", "evt": "/api/deliveries"}


def record_path(prefix: str, record_id: str) -> str:
    """Return the path of a callback (`hook`) or a webhook (`evt`). Raises `CommandError` for an id of another form."""
    if not re.fullmatch(rf"{prefix}_[0-9A-Za-z_-]{{1,100}}", record_id):
        raise CommandError(
            "The id of a callback begins with hook_ (see `broker callbacks`), that of a webhook with evt_ "
            "(see `broker webhooks`)."
        )
    return f"{_COLLECTIONS[prefix]}/{record_id}"
