"""The sums of all processes, made by the supervisor when a process is asked for the metrics page.

What a process has counted remains in the sum after its end: a sum that fell would look like a restart of the machine.
A process that was killed is counted as of its last report.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from broker.monitoring.process_sums import Report, add_reports, keep_cumulative

ANSWER_SECONDS: Final = 1.0
"""Time that a process has for its report; then its last one counts."""


class MetricsHub:
    """Collects reports and adds them up. All methods return at once."""

    def __init__(self, ask: Callable[[int], None], answer: Callable[[int, Report], None]) -> None:
        """ask: request the report of a process. answer: send the sums to a process. Both by its number."""
        self._ask = ask
        self._answer = answer
        self._reports: dict[int, Report] = {}
        """The last one of each running process."""
        self._ended: Report = ()
        """The sum of the processes that have ended."""
        self._waiting: set[int] = set()
        """Processes that wait for the sums."""
        self._missing: set[int] = set()
        """Processes whose reports are awaited."""
        self.due_at: float | None = None
        """End of the wait, by the monotonic clock."""

    def begin(self, number: int) -> None:
        """Begin to count a process; until it has reported, nothing."""
        self._reports[number] = ()

    def end(self, number: int) -> None:
        """Keep the counts of a process that has ended."""
        self._ended = add_reports([self._ended, keep_cumulative(self._reports.pop(number, ()))])
        self._waiting.discard(number)
        self._missing.discard(number)
        self._finish_if_complete()

    def request(self, number: int) -> None:
        """Send the sums to a process, once all have reported."""
        self._waiting.add(number)
        if self.due_at is None:
            self.due_at = time.monotonic() + ANSWER_SECONDS
            self._missing = set(self._reports)
            for other in self._reports:
                self._ask(other)

    def store(self, number: int, report: Report) -> None:
        """Store the report of a process."""
        self._reports[number] = report
        self._missing.discard(number)
        self._finish_if_complete()

    def finish_if_due(self, now: float) -> None:
        """Answer with what is there, if a process has not reported in time."""
        if self.due_at is not None and now >= self.due_at:
            self._finish()

    def _finish_if_complete(self) -> None:
        if self.due_at is not None and not self._missing:
            self._finish()

    def _finish(self) -> None:
        waiting, self._waiting, self._missing, self.due_at = self._waiting, set(), set(), None
        sums = add_reports([self._ended, *self._reports.values()])
        for number in waiting:
            self._answer(number, sums)
