"""The secrets with which providers sign callbacks, where the API publishes one per account."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from broker.errors import ProviderError
from broker.providers import parsing
from broker.providers.base import ProviderContext

REFUSED = frozenset({401, 403})


async def fetch_secrets(
    keys: Sequence[ProviderContext], url: str, place: str, read: Callable[[str], bytes]
) -> list[bytes]:
    """Return the signing key of each account; none for one whose API key the provider refuses.

    place: of the secret in the response, dotted. read: decodes it. Raises `ProviderError` if one cannot be fetched: a
    callback signed with it would look wrong.
    """
    found = []
    for context in keys:
        secret = context.api_key.get_secret_value() if context.api_key else ""
        response = await context.client.request("GET", url, headers={"Authorization": f"Bearer {secret}"})
        if response.status in REFUSED:
            continue
        text = parsing.first(parsing.text, parsing.values_at((response.json(),), place))
        try:
            found.append(read(text or ""))
        except ValueError as error:
            summary = f"{context.name}: the secret of its webhooks, HTTP {response.status}: {error}"
            raise ProviderError(summary, summary=summary) from None
    return found
