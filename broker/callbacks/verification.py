"""Verification of callbacks: what one proves, and which task it concerns. One code for new and for stored callbacks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from broker.clock import Clock
from broker.providers.base import Provider
from storage.callbacks import StoredCallback
from storage.ids import TASK_ID
from storage.tasks import Task, Tasks
from webhooks import verification
from webhooks.signatures.base import Proof, Signature, Unsigned
from webhooks.tokens import CallbackTokens
from webhooks.verification import Decision, Evidence, IncomingCallback, MalformedBody, Verification

MAX_ID_CHARACTERS: Final = 200
_ATTEMPT: Final = re.compile(r"[1-9][0-9]{0,5}")


@dataclass(frozen=True, kw_only=True)
class VerifiedCallback:
    """A callback that was read and judged."""

    provider: Provider
    evidence: Evidence
    decision: Decision
    job_ids: tuple[str, ...] = ()
    """The ids in its body, ours or the provider's."""
    task: Task | None = None
    attempt: int | None = None
    """From the address, for a callback with a token."""
    body: Any = None
    """Parsed; None if it is not readable, or was not read."""
    is_readable: bool = True


@dataclass(frozen=True, kw_only=True)
class CallbackVerifier:
    """Verifies callbacks."""

    clock: Clock
    tasks: Tasks
    tokens: CallbackTokens
    provider: Provider
    """Receives the callbacks of paths that name no provider."""
    providers: Mapping[str, Provider]
    signatures: Mapping[str, Signature]

    async def verify(self, callback: IncomingCallback) -> VerifiedCallback:
        """Verify a new callback."""
        provider = self._provider_of(callback.provider)
        token, task_id, attempt = self._check_token(callback)
        signature = self._signature_of(provider)
        evidence = Evidence(
            token=token,
            signature_required=signature.required and token == Proof.NONE,
            trusted=callback.trusted,
        )
        if token == Proof.WRONG:  # its body is not worth reading
            decision = verification.decide(evidence)
            return VerifiedCallback(provider=provider, evidence=evidence, decision=decision, attempt=attempt)
        try:
            body = verification.parse_callback_body(callback)
        except MalformedBody as error:
            return VerifiedCallback(
                provider=provider, evidence=evidence, decision=_malformed(error), attempt=attempt, is_readable=False
            )
        job_ids = provider.job_ids(body)
        task = await self._find_task(task_id, job_ids, token)
        signed = signature.verify(callback.headers, callback.body, job_ids, self.clock.now())
        evidence = replace(evidence, signature=signed, known=task is not None)
        return VerifiedCallback(
            provider=provider,
            evidence=evidence,
            decision=verification.decide(evidence),
            job_ids=job_ids,
            task=task,
            attempt=attempt,
            body=body,
        )

    async def verify_stored(self, hook: StoredCallback) -> VerifiedCallback:
        """Verify a callback of the inbox by what it proved on arrival and what is required now."""
        provider = self._provider_of(hook.provider)
        evidence = Evidence.from_json(hook.evidence)
        required = self._signature_of(provider).required and evidence.token == Proof.NONE
        body, malformed = _read_stored(hook)
        job_ids = provider.job_ids(body)
        task = await self._find_task(verification.task_in_query(hook.query), job_ids, evidence.token)
        evidence = replace(evidence, signature_required=required, known=task is not None)
        return VerifiedCallback(
            provider=provider,
            evidence=evidence,
            decision=verification.decide(evidence) if malformed is None or evidence.token == Proof.WRONG else malformed,
            job_ids=job_ids,
            task=task,
            attempt=hook.attempt,
            body=body,
            is_readable=malformed is None,
        )

    def _provider_of(self, name: str) -> Provider:
        by_path = {provider.callback_path.rsplit("/", 1)[-1]: provider for provider in self.providers.values()}
        return self.providers.get(name) or by_path.get(name, self.provider)

    def _signature_of(self, provider: Provider) -> Signature:
        return self.signatures.get(provider.name, Unsigned())

    def _check_token(self, callback: IncomingCallback) -> tuple[Proof, str | None, int | None]:
        """Return what the token in the address proves, and for which task and attempt."""
        task_id = callback.query.get("task")
        token = callback.query.get("token")
        if token is None:
            return Proof.NONE, task_id, None
        number = callback.query.get("attempt", "")
        if task_id is None or not _ATTEMPT.fullmatch(number):
            return Proof.WRONG, None, None
        return self.tokens.verify(task_id, int(number), token), task_id, int(number)

    async def _find_task(self, task_id: str | None, job_ids: tuple[str, ...], token: Proof) -> Task | None:
        """Return the task named by the address, or else by an id in the body.

        A right token is valid for the task of its address, and for no other.
        """
        named = (task_id, *job_ids) if task_id else job_ids
        for name in named[:1] if token == Proof.BODY_VERIFIED else named:
            if len(name) > MAX_ID_CHARACTERS:
                continue
            task = await (self.tasks.get(name) if TASK_ID.fullmatch(name) else self.tasks.get_by_job(name))
            if task is not None:
                return task
        return None


def _read_stored(hook: StoredCallback) -> tuple[Any, Decision | None]:
    """Return the parsed body, or why there is none; only the beginning of a body that was too large is stored."""
    if hook.status == 413:
        return None, Decision(verification=Verification.MALFORMED, status=413, reason=hook.reason)
    try:
        return verification.parse_body(hook.body.encode("utf-8", "replace")), None
    except MalformedBody as error:
        return None, _malformed(error)


def _malformed(error: MalformedBody) -> Decision:
    return Decision(verification=Verification.MALFORMED, status=error.status, reason=error.reason)
