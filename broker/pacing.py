"""Pace: when a provider is left alone, and for how long."""

from __future__ import annotations

from broker.lifecycle import Rules, backoff
from broker.reports import Failed, Report

ACCOUNT_TROUBLES = frozenset({"provider_rate_limited", "provider_unavailable"})
UNKNOWN_IN_A_ROW = 5
BREAK_SECONDS = 30.0


def pause_after(report: Report | None, troubles: int, now: float, rules: Rules) -> float | None:
    """Until when nothing more is submitted to this provider; None = no trouble, the lane is clear.

    report: what `submit` answered, None if the outcome is unknown. troubles: submissions in a row that met trouble
    before this one. A refusal for rate or maintenance concerns the whole account, so it pauses everybody at once;
    single unknown outcomes do not, only a row of them: then the provider is down, and each further one may cost money.
    """
    if report is None:
        return now + BREAK_SECONDS if troubles + 1 >= UNKNOWN_IN_A_ROW else now
    if isinstance(report, Failed) and report.retryable and report.code in ACCOUNT_TROUBLES:
        return now + max(report.retry_in or 0.0, backoff(troubles, rules, most=rules.check_most))
    return None
