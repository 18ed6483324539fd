"""The keys that verify callbacks: configured, or fetched from the provider and renewed when they rotate."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from broker.errors import ProviderError
from broker.logs import log
from webhooks.signatures.base import Proof, Signature, Unsigned

KEYS_SECONDS: Final = 24 * 3600.0
"""Age at which fetched keys are fetched again, at the latest (fal: at most 24 hours)."""
REFETCH_SECONDS: Final = 60.0
"""Shortest pause between two fetches: wrong signatures, which anyone can send, must not become requests."""


class CallbackSignature(Protocol):
    """Verifier of one provider's callbacks, with its keys."""

    @property
    def required(self) -> bool:
        """True if an unsigned callback without a token must be rejected."""

    async def verify(self, headers: Mapping[str, str], body: bytes, ids: Sequence[str], now: float) -> Proof:
        """Return what the headers prove; never raises. Arguments as in `Signature.verify`."""


@dataclass(frozen=True)
class FixedKeys:
    """Verifier with configured keys, or for callbacks without a signature."""

    signature: Signature

    @property
    def required(self) -> bool:
        return self.signature.required

    async def verify(self, headers: Mapping[str, str], body: bytes, ids: Sequence[str], now: float) -> Proof:
        return self.signature.verify(headers, body, ids, now)


def verifies_signatures(verifier: CallbackSignature) -> bool:
    """Return False for the verifier of a provider whose callbacks are not signed, or whose key is not configured."""
    return not (isinstance(verifier, FixedKeys) and isinstance(verifier.signature, Unsigned))


@dataclass(kw_only=True)
class FetchedKeys:
    """Verifier whose keys the provider publishes.

    They are fetched for the first callback that is signed, and again when they are old or a signature does not match:
    then the provider may have rotated them. While none can be fetched a signature proves nothing, neither for nor
    against the callback, and its token or a check of the job decides.
    """

    name: str
    """Of the provider."""
    is_signed: Callable[[Mapping[str, str]], bool]
    """Headers → True if they offer a signature."""
    fetch: Callable[[], Awaitable[Signature]]
    """Fetches the keys. Raises `ProviderError`."""
    required: bool = False
    _signature: Signature = field(default_factory=Unsigned)
    _fetched_at: float | None = None
    """When the present keys were fetched."""
    _tried_at: float | None = None
    _fetching: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def verify(self, headers: Mapping[str, str], body: bytes, ids: Sequence[str], now: float) -> Proof:
        if not self.is_signed(headers):
            return Proof.NONE
        if self._is_old(now):
            await self._fetch_keys(now)
        if self._is_old(now):
            return Proof.NONE
        used = self._signature
        proof = used.verify(headers, body, ids, now)
        if proof == Proof.WRONG:
            await self._fetch_keys(now, unlike=used)
            proof = self._signature.verify(headers, body, ids, now)
        return proof

    def _is_old(self, now: float) -> bool:
        return self._fetched_at is None or now - self._fetched_at > KEYS_SECONDS

    async def _fetch_keys(self, now: float, unlike: Signature | None = None) -> None:
        """Fetch the keys once for all concurrent callbacks. unlike: the keys in whose place others are needed."""
        async with self._fetching:
            is_early = self._tried_at is not None and 0 <= now - self._tried_at < REFETCH_SECONDS
            if is_early or (unlike is not None and self._signature is not unlike):
                return
            self._tried_at = now
            try:
                self._signature = await self.fetch()
            except ProviderError as error:
                log.warning(
                    "the keys of callbacks could not be fetched",
                    action="signing_keys_unavailable",
                    provider=self.name,
                    why=error.summary,
                )
            else:
                self._fetched_at = now
