"""Attempts: one row per submission to a provider, with its outcome and its cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One submission to a provider: a request that could cost something, and its outcome.

    key_id: the provider's key that it used, by its stable name; checks and cancels use the same.
    outcome: `sent`, `accepted`, `refused`, `failed`, `succeeded` or `unknown`. spare: a second success, kept as JSON.
    learned_by: how we heard of the end: `callback`, `question` (asked, although a callback was expected) or `poll`
    (asked, none could come); None where the order's own answer told it.
    """

    task_id: str
    number: int
    provider: str
    key_id: str
    job_id: str | None = None
    sent_at: float
    ended_at: float | None = None
    outcome: str = "sent"
    code: str | None = None
    provider_code: str | None = None
    billed: str = "unknown"
    cost: float | None = None
    spare: str | None = None
    learned_by: str | None = None
