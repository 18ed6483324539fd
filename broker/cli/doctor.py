"""`broker doctor`: one line per check, and the cure below each problem."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from broker.bootstrap import salvage_settings
from broker.cli.connection import quiet_logs
from broker.cli.console import print_json, print_line
from broker.cli.exit_codes import ExitCode
from broker.clock import SystemClock
from broker.doctor.checks import checks_for, run_checks
from broker.doctor.context import open_context
from broker.providers.base import Finding
from broker.providers.health import failed, ok
from broker.settings.loading import SalvagedSettings

_MARKS = {"ok": ("ok     ", "green"), "warning": ("WARNING", "yellow"), "failed": ("FAILED ", "bold red")}
_SKIPPED = ("-      ", "dim")


async def run_doctor(*, as_json: bool) -> int:
    """Print all findings; NOT_DONE if a check failed, UNAVAILABLE if the settings are wrong."""
    found = salvage_settings()
    quiet_logs(found.settings)
    report = []
    async with open_context(found, SystemClock()) as context:
        for finding in _settings_findings(found):
            report.append(finding)
            _print_finding(finding, quiet=as_json)
        async for finding in run_checks(context, checks_for(context)):
            report.append(finding)
            _print_finding(finding, quiet=as_json)
    is_healthy = not any(finding.status == "failed" for finding in report)
    if as_json:
        print_json({"ok": is_healthy, "checks": [asdict(finding) for finding in report]})
    elif is_healthy:
        print_line("All is well." if all(finding.status != "warning" for finding in report) else "Nothing is broken.")
    if found.errors:
        return ExitCode.UNAVAILABLE
    return ExitCode.DONE if is_healthy else ExitCode.NOT_DONE


def _settings_findings(found: SalvagedSettings) -> Iterator[Finding]:
    if not found.errors:
        yield ok("settings", "understood")
    for error in found.errors:
        problem, _, cure = error.partition(": ")
        yield failed("settings", problem, cure or "see .env.example")


def _print_finding(finding: Finding, *, quiet: bool) -> None:
    if quiet:
        return
    mark, style = _MARKS.get(finding.status, _SKIPPED)
    print_line(f"{mark} {finding.name:<21} {finding.found}", style=style)
    if finding.cure:
        print_line(f"{' ' * 8}{'':<21} cure: {finding.cure}")
