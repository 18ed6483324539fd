"""The round trip: called at an address from outside, is it we who answer?"""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from broker.errors import ProviderError
from broker.net.api_client import ApiClient
from webhooks.tokens import ChallengeResponse, new_nonce

GREETING: Final = "/api/webhook/nano-banana"
PROBE_SECONDS: Final = 10.0
_HEADERS: Final = {"ngrok-skip-browser-warning": "1"}
"""Or ngrok's free tunnels may answer with a page for browsers."""


class Verdict(StrEnum):
    """US: our proof came back. STRANGER: somebody answered, and it was not us. SILENCE: nobody did."""

    US = "us"
    STRANGER = "stranger"
    SILENCE = "silence"


@dataclass(frozen=True, kw_only=True)
class RoundTrip:
    """why: what came instead of our proof, without any secret. broker: it was a broker, but of another secret.

    seconds: there and back. error: why nobody answered.
    """

    verdict: Verdict
    why: str = ""
    broker: bool = False
    seconds: float = 0.0
    error: ProviderError | None = None


@dataclass(frozen=True, kw_only=True)
class Prober:
    """Asks addresses with a nonce.

    The client is the one for addresses of the operator: an agent of this machine named this one, the question holds no
    secret, redirects are not followed, and nothing of the answer goes anywhere.
    """

    client: ApiClient
    presence: ChallengeResponse

    async def probe(self, base: str, seconds: float = PROBE_SECONDS) -> RoundTrip:
        """base: an address without a slash at the end."""
        nonce, began = new_nonce(), time.perf_counter()
        try:
            answer = await self.client.request(
                "GET", base + GREETING, params={"probe": nonce}, headers=_HEADERS, timeout=seconds
            )
        except ProviderError as error:
            return RoundTrip(verdict=Verdict.SILENCE, why=str(error), error=error)
        try:
            said = answer.json()
        except ProviderError:
            said = None
        if isinstance(said, dict) and self.presence.is_valid(nonce, said.get("probe")):
            return RoundTrip(verdict=Verdict.US, seconds=time.perf_counter() - began)
        if isinstance(said, dict) and said.get("message") == "Nano Banana webhook endpoint is ready":
            why = "a broker answers there, but not one with our SECRET_KEY"
            return RoundTrip(verdict=Verdict.STRANGER, why=why, broker=True)
        return RoundTrip(verdict=Verdict.STRANGER, why=f"somebody else answers there (HTTP {answer.status})")
