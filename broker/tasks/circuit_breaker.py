"""The circuit breaker: when a provider gets no further submissions, and for how long."""

from __future__ import annotations

from typing import Final

from broker.reports import Failed, Report
from broker.tasks.policy import TaskPolicy, backoff_seconds

ACCOUNT_ERROR_CODES: Final = frozenset({"provider_rate_limited", "provider_unavailable"})
"""Errors that concern the whole account, not one order."""
MAX_UNKNOWN_IN_A_ROW: Final = 5
OPEN_SECONDS: Final = 30.0


def cooldown_until(report: Report | None, failures: int, now: float, policy: TaskPolicy) -> float | None:
    """Return the moment until which nothing is submitted; None closes the circuit.

    report: response to a submission, None if its outcome is unknown. failures: failed submissions in a row before
    this one. An account error opens the circuit at once. A single unknown outcome does not, only a row of them: the
    provider is down then, and each further submission may cost money.
    """
    if report is None:
        return now + OPEN_SECONDS if failures + 1 >= MAX_UNKNOWN_IN_A_ROW else now
    if isinstance(report, Failed) and report.retryable and report.code in ACCOUNT_ERROR_CODES:
        pause = backoff_seconds(failures, policy, max_seconds=policy.max_check_pause_seconds)
        return now + max(report.retry_in or 0.0, pause)
    return None
