"""Where providers call: read at most what we would judge, judge it, answer. The work comes later."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response

from broker.api.access import Access
from broker.api.answers import answer, refused
from broker.api.bodies import is_encoded
from broker.callbacks.receive import CallbackReceiver
from broker.clock import Clock, iso
from broker.errors import Refusal
from broker.metrics import Metrics
from broker.sentences import Sentences
from webhooks.tokens import ChallengeResponse
from webhooks.verification import MAX_BODY_BYTES, Decision, IncomingCallback

_CODES: Final = {400: "invalid_request", 401: "unauthorized", 404: "task_not_found", 413: "payload_too_large"}


@dataclass(frozen=True, kw_only=True)
class Hooks:
    clock: Clock
    receiver: CallbackReceiver
    challenge: ChallengeResponse
    metrics: Metrics
    sentences: Sentences
    access: Access

    async def greet(self, request: Request) -> Response:
        """For whoever checks an address before using it; to a nonce we also show that it is we who answer."""
        message = "Nano Banana webhook endpoint is ready"
        greeting = {"status": "ok", "message": message, "timestamp": iso(self.clock.now())}
        nonces = request.query_params.getlist("probe")
        shown = self.challenge.answer(nonces[0]) if len(nonces) == 1 else None
        return answer(greeting | ({"probe": shown} if shown else {}))

    async def hear(self, request: Request) -> Response:
        """Any content type is read as JSON; nothing is inflated."""
        began = time.perf_counter()
        callback = IncomingCallback(
            provider=request.path_params.get("provider", "nano-banana"),
            query=dict(request.query_params),
            headers={name.lower(): value for name, value in request.headers.items()},
            body=await _read(request),
            trusted=self.access.caller(request).trusted,
            encoded=is_encoded(request),
        )
        heard = await self.receiver.receive(callback)
        response = self._told(request, heard.decision)
        response.background = BackgroundTask(self._observe_answer, began)
        return response

    async def _observe_answer(self, began: float) -> None:
        """Record the time from the first byte of the request to the end of the response."""
        self.metrics.callback_seconds.observe(time.perf_counter() - began)

    def _told(self, request: Request, judgement: Decision) -> Response:
        """A refusal is answered like every other, but here: raised, it would lose what is to be done after it."""
        if judgement.status not in _CODES:
            return answer(
                {"success": True, "message": f"The callback was taken: {judgement.reason}."}, judgement.status
            )
        refusal = Refusal(_CODES[judgement.status], f"The callback was not taken: {judgement.reason}.")
        self.metrics.refusals.labels(refusal.code).inc()
        return refused(self.sentences, refusal, request, {})


async def _read(request: Request) -> bytes:
    """The body, or one byte more than is judged: what is longer is refused by its length alone."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            break
    return bytes(body[: MAX_BODY_BYTES + 1])
