"""Reachability probe: a request to our own public URL, answered by a challenge response."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from broker.errors import ProviderError
from broker.net.api_client import ApiClient
from broker.net.documents import parse_off_loop
from webhooks.tokens import ChallengeResponse, new_nonce

PROBE_SECONDS: Final = 10.0
READY_MESSAGE: Final = "Nano Banana webhook endpoint is ready"

_HEADERS: Final = {"ngrok-skip-browser-warning": "1"}
"""Without it ngrok's free tunnels may answer with a page for browsers."""


class ProbeVerdict(StrEnum):
    VERIFIED = "verified"
    """The response to our challenge came back."""
    OTHER_SERVER = "other_server"
    """A server without our secret answered."""
    UNREACHABLE = "unreachable"
    """No response."""


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """Outcome of one probe."""

    verdict: ProbeVerdict
    reason: str = ""
    """The response received instead of a valid one, without secrets."""
    is_broker: bool = False
    """True for a broker with another secret."""
    seconds: float = 0.0
    """Duration of the round trip."""
    error: ProviderError | None = None
    """The cause of `UNREACHABLE`."""

    @property
    def is_verified(self) -> bool:
        return self.verdict == ProbeVerdict.VERIFIED


@dataclass(frozen=True, kw_only=True)
class ReachabilityProbe:
    """Sends a nonce to a URL and checks the answer.

    It uses the client for URLs of the operator: an agent on this machine named the URL, the request holds no secret,
    redirects are not followed, and no part of the response is passed on.
    """

    client: ApiClient
    challenge: ChallengeResponse
    path: str
    """Callback path of a provider; a GET there is answered with the challenge response."""

    async def probe_url(self, base_url: str, seconds: float = PROBE_SECONDS) -> ProbeResult:
        """Probe a URL given without a trailing slash."""
        nonce, started = new_nonce(), time.perf_counter()
        try:
            response = await self.client.request(
                "GET", base_url + self.path, params={"probe": nonce}, headers=_HEADERS, timeout=seconds
            )
        except ProviderError as error:
            return ProbeResult(verdict=ProbeVerdict.UNREACHABLE, reason=str(error), error=error)
        try:
            answer = await parse_off_loop(len(response.body), response.json)
        except ProviderError:
            answer = None
        if isinstance(answer, dict) and self.challenge.is_valid(nonce, answer.get("probe")):
            return ProbeResult(verdict=ProbeVerdict.VERIFIED, seconds=time.perf_counter() - started)
        if isinstance(answer, dict) and answer.get("message") == READY_MESSAGE:
            reason = "a broker answers there, but not one with our SECRET_KEY"
            return ProbeResult(verdict=ProbeVerdict.OTHER_SERVER, reason=reason, is_broker=True)
        reason = f"another server answers there (HTTP {response.status})"
        return ProbeResult(verdict=ProbeVerdict.OTHER_SERVER, reason=reason)
