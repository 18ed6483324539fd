"""`broker doctor`: one line per check, and the cure below each problem."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import asdict

from broker.bootstrap import salvage_settings
from broker.cli import ExitCode
from broker.cli.connection import quiet_logs
from broker.cli.console import print_json, print_line
from broker.clock import SystemClock
from broker.doctor.checks import checks_for, run_checks
from broker.doctor.context import DoctorContext, open_context
from broker.providers.base import Finding
from broker.providers.health import failed, ok, warning
from broker.settings.loading import SalvagedSettings

_MARKS = {"ok": ("ok     ", "green"), "warning": ("WARNING", "yellow"), "failed": ("FAILED ", "bold red")}
_SKIPPED = ("-      ", "dim")


async def run_doctor(*, as_json: bool) -> int:
    """Print all findings; NOT_DONE if a check failed, UNAVAILABLE if the settings are wrong."""
    found = salvage_settings()
    quiet_logs(found.settings)
    report: list[Finding] = []
    async with open_context(found, SystemClock()) as context:
        async for finding in _all_findings(found, context):
            report.append(finding)
            if not as_json:
                _print_finding(finding)
    statuses = {finding.status for finding in report}
    is_healthy = "failed" not in statuses
    if as_json:
        print_json({"ok": is_healthy, "checks": [asdict(finding) for finding in report]})
    elif is_healthy:
        print_line("Nothing is broken." if "warning" in statuses else "All is well.")
    if found.errors:
        return ExitCode.UNAVAILABLE
    return ExitCode.DONE if is_healthy else ExitCode.NOT_DONE


async def _all_findings(found: SalvagedSettings, context: DoctorContext) -> AsyncIterator[Finding]:
    if not found.errors:
        yield ok("settings", "understood")
    for error in found.errors:
        problem, _, cure = error.partition(": ")
        yield failed("settings", problem, cure or "see .env.example")
    for sentence in found.settings.unread_variables:
        problem, _, cure = sentence.partition(": ")
        yield warning("settings", problem, cure)
    async for finding in run_checks(context, checks_for(context)):
        yield finding


def _print_finding(finding: Finding) -> None:
    mark, style = _MARKS.get(finding.status, _SKIPPED)
    print_line(f"{mark} {finding.name:<21} {finding.found}", style=style)
    if finding.cure:
        print_line(f"{' ' * 8}{'':<21} cure: {finding.cure}")
