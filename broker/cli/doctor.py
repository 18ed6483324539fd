"""`broker doctor`: a line for each check, and the cure below what is not well."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from broker.bootstrap import salvage_settings
from broker.cli.commands import DONE, NOT_DONE, WRONG_SETTINGS
from broker.cli.house import quiet_logs
from broker.cli.screen import say, say_json
from broker.clock import SystemClock
from broker.doctor.checks import checks_for
from broker.doctor.context import open_context
from broker.doctor.findings import Finding, failed, ok, run_checks
from broker.settings.loading import SalvagedSettings

_MARKS = {"ok": ("ok     ", "green"), "warning": ("WARNING", "yellow"), "failed": ("FAILED ", "bold red")}
_SKIPPED = ("-      ", "dim")


async def doctor(*, as_json: bool) -> int:
    """0 when all is well, perhaps with warnings; 1 when something is wrong; 2 when the settings are."""
    found = salvage_settings()
    quiet_logs(found.settings)
    report = []
    async with open_context(found, SystemClock()) as context:
        for finding in _settings(found):
            report.append(finding)
            _show(finding, quiet=as_json)
        async for finding in run_checks(context, checks_for(context)):
            report.append(finding)
            _show(finding, quiet=as_json)
    well = not any(finding.status == "failed" for finding in report)
    if as_json:
        say_json({"ok": well, "checks": [asdict(finding) for finding in report]})
    elif well:
        say("All is well." if all(finding.status != "warning" for finding in report) else "Nothing is broken.")
    if found.complaints:
        return WRONG_SETTINGS
    return DONE if well else NOT_DONE


def _settings(found: SalvagedSettings) -> Iterator[Finding]:
    if not found.complaints:
        yield ok("settings", "understood")
    for complaint in found.complaints:
        said, _, cure = complaint.partition(": ")
        yield failed("settings", said, cure or "see .env.example")


def _show(finding: Finding, *, quiet: bool) -> None:
    if quiet:
        return
    mark, style = _MARKS.get(finding.status, _SKIPPED)
    say(f"{mark} {finding.name:<21} {finding.found}", style=style)
    if finding.cure:
        say(f"{' ' * 8}{'':<21} cure: {finding.cure}")
