"""`broker hooks secret`: what receivers of our webhooks need to know them by."""

from __future__ import annotations

from broker.bootstrap import kept_secret, load_settings
from broker.cli.screen import Unable, note, say
from broker.services import signing_keys
from webhooks.signatures.standard import write_secret


async def show() -> None:
    """Each secret on a line, the one to be used first on top. Raises `Unable` where none was made yet."""
    settings = load_settings()
    secret = kept_secret(settings)
    if secret is None and not settings.webhook_secrets:
        raise Unable(f"There is no secret in {settings.data_dir.resolve()} yet: start the broker once, in this folder.")
    for key in signing_keys(settings, secret or b""):
        say(write_secret(key))
    note("For the receiver of your webhooks: docs/behaviour.md says how to verify them.")
