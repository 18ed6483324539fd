"""Verification of callbacks, new and stored ones: the proof that one carries, and the task that it concerns."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Final, NamedTuple

from broker.clock import Clock
from broker.net.documents import parse_off_loop
from broker.providers.base import Provider
from broker.providers.signing_keys import CallbackSignature, FixedKeys
from broker.reports import Report
from storage.attempts import Attempts
from storage.callbacks import StoredCallback
from storage.ids import TASK_ID, is_own_account, provider_of
from storage.tasks import Task, Tasks
from webhooks import verification
from webhooks.signatures.base import Proof, Unsigned
from webhooks.tokens import CallbackTokens
from webhooks.verification import Decision, Evidence, IncomingCallback, MalformedBody, Verification

UNSIGNED: Final = FixedKeys(Unsigned())
"""For providers at which only users have keys: the token in the address proves their callbacks."""
_ATTEMPT: Final = re.compile(r"[1-9][0-9]{0,5}")


class VerifiedCallback(NamedTuple):
    """A callback that was read and decided on."""

    provider: Provider
    evidence: Evidence
    decision: Decision
    job_ids: tuple[str, ...] = ()
    """The ids in its body, ours or the provider's."""
    task: Task | None = None
    attempt: int | None = None
    """From the address, for a callback with a token; else the one whose job the body names."""
    report: Report | None = None
    """In its body; None if that is not readable, or was not read."""

    @property
    def is_relevant(self) -> bool:
        """Return True if its task is to process it."""
        return self.decision.verification in {Verification.ACCEPT, Verification.RECHECK}


@dataclass(frozen=True, kw_only=True)
class CallbackVerifier:
    """Verifies callbacks."""

    clock: Clock
    tasks: Tasks
    read_task: Callable[[str], Awaitable[Task | None]]
    """Reads the task that a right token names."""
    attempts: Attempts
    tokens: CallbackTokens
    providers: Mapping[str, Provider]
    """The preferred one first."""
    signatures: Mapping[str, CallbackSignature]
    """By provider."""

    async def verify(self, callback: IncomingCallback) -> VerifiedCallback:
        """Verify a new callback."""
        provider = self._provider_of(callback.provider)
        signature = self.signatures.get(provider.name, UNSIGNED)
        token, task_id, attempt = self._check_token(callback)
        required = signature.required and token == Proof.NONE
        evidence = Evidence(token=token, signature_required=required, trusted=callback.trusted)
        if token == Proof.WRONG:  # its body is not worth reading
            decision = verification.decide(evidence)
            return VerifiedCallback(provider=provider, evidence=evidence, decision=decision, attempt=attempt)
        parse = partial(verification.parse_body, callback.body, encoded=callback.encoded)
        try:
            job_ids, report = await _read_body(provider, len(callback.body), parse)
        except MalformedBody as error:
            return VerifiedCallback(provider=provider, evidence=evidence, decision=error.decision, attempt=attempt)
        signed = await signature.verify(callback.headers, callback.body, job_ids, self.clock.now())
        if signed == Proof.WRONG and token == Proof.BODY_VERIFIED and await self._is_of_own_account(task_id, attempt):
            signed = Proof.NONE  # of an account whose secret for callbacks is not known here
        task = await self._find_task(task_id, job_ids, token)
        evidence = evidence._replace(signature=signed, known=task is not None)
        return await self._decide(provider, evidence, task, job_ids=job_ids, report=report, attempt=attempt)

    async def verify_stored(self, callback: StoredCallback) -> VerifiedCallback:
        """Verify a callback of the inbox by what it proved on arrival and what is required now."""
        provider = self._provider_of(callback.provider)
        evidence = Evidence.from_json(callback.evidence)
        required = self.signatures.get(provider.name, UNSIGNED).required and evidence.token == Proof.NONE
        evidence = evidence._replace(signature_required=required)
        job_ids, report, malformed = await _read_stored(provider, callback)
        task_id = json.loads(callback.query).get("task")
        if callback.body_truncated:  # the ids in its body are lost, but not what they led to
            task_id = callback.task_id or task_id
        task = await self._find_task(task_id, job_ids, evidence.token)
        evidence = evidence._replace(known=task is not None)
        decided = await self._decide(provider, evidence, task, job_ids=job_ids, report=report, attempt=callback.attempt)
        return decided._replace(decision=malformed) if malformed and evidence.token != Proof.WRONG else decided

    async def _decide(
        self,
        provider: Provider,
        evidence: Evidence,
        task: Task | None,
        *,
        job_ids: tuple[str, ...],
        report: Report | None,
        attempt: int | None,
    ) -> VerifiedCallback:
        """Decide about a callback that was read. attempt: from the address."""
        if task is not None and evidence.token != Proof.BODY_VERIFIED:
            # a provider's signature, or the lack of one, proves nothing about another provider's job
            attempts = await self.attempts.list_of_task(task.id)
            sent_to = {provider_of(name) for name in (task.provider, *(one.provider for one in attempts))}
            task = task if provider.name in sent_to else None
            there = [one for one in attempts if provider_of(one.provider) == provider.name]
            number = next((one.number for one in there if one.job_id in job_ids), None)
            evidence = evidence._replace(known=task is not None)
            if evidence.signature == Proof.BODY_VERIFIED and number is None:
                # nor about another job: some providers sign for all their customers with the same keys
                evidence = evidence._replace(signature=Proof.SENDER_VERIFIED)
            attempt = attempt or number
        return VerifiedCallback(
            provider=provider,
            evidence=evidence,
            decision=verification.decide(evidence),
            job_ids=job_ids,
            task=task,
            attempt=attempt,
            report=report,
        )

    def _provider_of(self, name: str) -> Provider:
        """Return the provider with this name or callback path; the preferred one for an unknown name."""
        return self._providers_by_path.get(name) or next(iter(self.providers.values()))

    @cached_property
    def _providers_by_path(self) -> Mapping[str, Provider]:
        """The providers by name and by the end of their callback path; of two with the same, the preferred one."""
        found: dict[str, Provider] = {}
        for provider in self.providers.values():
            for name in (provider.name, provider.callback_path.rpartition("/")[2]):
                found.setdefault(name, provider)
        return found

    def _check_token(self, callback: IncomingCallback) -> tuple[Proof, str | None, int | None]:
        """Return the proof that the token in the address gives, and for which task and attempt."""
        task_id = callback.query.get("task")
        token = callback.query.get("token")
        if token is None:
            return Proof.NONE, task_id, None
        number = callback.query.get("attempt", "")
        if task_id is None or not _ATTEMPT.fullmatch(number):
            return Proof.WRONG, None, None
        return self.tokens.verify(task_id, int(number), token), task_id, int(number)

    async def _is_of_own_account(self, task_id: str | None, number: int | None) -> bool:
        """Return whether an attempt was submitted with a key of the task's owner."""
        attempt = None if task_id is None or number is None else await self.attempts.get(task_id, number)
        return attempt is not None and is_own_account(attempt.provider)

    async def _find_task(self, task_id: str | None, job_ids: tuple[str, ...], token: Proof) -> Task | None:
        """Return the task named by the address, or else by an id in the body.

        A right token is valid for the task of its address, and for no other.
        """
        if token == Proof.BODY_VERIFIED and task_id:
            return await self.read_task(task_id) if TASK_ID.fullmatch(task_id) else None
        for name in (task_id, *job_ids) if task_id else job_ids:
            task = await (self.tasks.get(name) if TASK_ID.fullmatch(name) else self.tasks.get_by_job(name))
            if task is not None:
                return task
        return None


async def _read_body(provider: Provider, size: int, parse: Callable[[], Any]) -> tuple[tuple[str, ...], Report]:
    """Return the job ids and the report in a body of `size` bytes. Raises `MalformedBody`."""

    def read() -> tuple[tuple[str, ...], Report]:
        body = parse()
        return provider.job_ids(body), provider.parse_callback(body)

    return await parse_off_loop(size, read)


async def _read_stored(
    provider: Provider, callback: StoredCallback
) -> tuple[tuple[str, ...], Report | None, Decision | None]:
    """Return the job ids and the report, or why the body was not readable on arrival or is not now.

    None of a truncated one is read.
    """
    if callback.body_truncated:
        malformed = Decision(verification=Verification.MALFORMED, status=callback.status, reason=callback.reason)
        return (), None, malformed if callback.verification == Verification.MALFORMED else None
    parse = partial(verification.parse_body, callback.body.encode("utf-8", "replace"))
    try:
        return *await _read_body(provider, len(callback.body), parse), None
    except MalformedBody as error:
        return (), None, error.decision
