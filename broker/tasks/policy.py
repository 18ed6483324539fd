"""The policy of tasks: every waiting time and limit in one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from storage.ids import provider_of


@dataclass(frozen=True, kw_only=True)
class TaskPolicy:
    """Waiting times and limits of a task's life."""

    check_after_seconds: float = 30.0
    """First check of a job when a callback is expected."""
    max_check_pause_seconds: float = 60.0
    """Longest pause between two checks."""
    poll_seconds: float = 3.0
    """Pause between checks when no callback can arrive."""
    min_recheck_seconds: float = 10.0
    """Shortest pause between two checks that unverified callbacks cause."""
    deadline_seconds: float = 900.0
    """Time a provider has for a job."""
    queue_seconds: float = 24 * 3600.0
    """Time an order may wait in the queue."""
    result_kept_seconds: float = 24 * 3600.0
    """Time a provider keeps results."""
    short_kept_seconds: Mapping[str, float] = field(default_factory=dict)
    """The same of each provider that is documented to keep them for less."""
    retry_seconds: float = 2.0
    """First pause after a failed step; each further one is twice as long."""
    max_retry_seconds: float = 3600.0
    max_dead_link_retries: int = 6
    """Downloads of a missing or invalid result before the task is shown as failed."""
    max_attempts: int = 3
    """Submissions per task; all but the last are known to have cost nothing."""
    resubmit_unknown: bool = False
    """Submit again after an unknown outcome. May cost twice."""
    retention_seconds: float = 24 * 3600.0
    """Time a finished task is kept."""
    tombstone_seconds: float = 7 * 24 * 3600.0
    """Time an expired task answers 410."""

    def download_at(self, provider: str, now: float) -> float:
        """Return when a result that is ready now is due for download: the sooner it is deleted, the more overdue."""
        return (
            now
            + self.short_kept_seconds.get(provider_of(provider), self.result_kept_seconds)
            - self.result_kept_seconds
        )


def backoff_seconds(retries: int, policy: TaskPolicy, *, max_seconds: float | None = None) -> float:
    """Return the pause before a step is repeated that was repeated `retries` times already.

    max_seconds: `policy.max_check_pause_seconds` if None.
    """
    longest = policy.max_check_pause_seconds if max_seconds is None else max_seconds
    return doubled_seconds(policy.retry_seconds, retries, longest)


def doubled_seconds(first_seconds: float, retries: int, max_seconds: float) -> float:
    """Return a pause that begins with `first_seconds` and doubles with each retry."""
    return float(min(first_seconds * 2.0 ** min(max(retries, 0), 20), max_seconds))
