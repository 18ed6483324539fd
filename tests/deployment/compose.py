"""The compose file as data, and the variables that it passes to a service."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
GUIDE = (ROOT / "docs" / "deploying.md").read_text("utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
CHECK = SERVICES["settings"]
"""The service that checks .env and ends."""

PROCESSES = {
    name: service for name, service in SERVICES.items() if service["image"] == "banana-service" and service is not CHECK
}
"""The services that run a broker or a worker."""

OTHER_VARIABLES = {"OBJECTS_PASSWORD", "NGROK_AUTHTOKEN", "PROXY_PORT"}
"""Variables of .env that the broker does not read."""


def is_worker(service: dict[str, Any]) -> bool:
    return service.get("command") == ["worker"]


def substitute(text: str, **given: str) -> str:
    """Replace variables as compose does, innermost first; a required variable that is missing becomes empty."""
    while found := re.search(r"\$\{([A-Z0-9_]+):([-+?])([^${}]*)\}", text):
        name, sign, word = found.groups()
        value = given.get(name, "")
        replacement = {"-": value or word, "+": word if value else "", "?": value}[sign]
        text = text[: found.start()] + replacement + text[found.end() :]
    return text


def service_environment(service: dict[str, Any], **given: str) -> dict[str, str]:
    return {name: substitute(value, **given) for name, value in service["environment"].items()}


def guide_settings() -> dict[str, str]:
    """Return the guide's .env of the full set, with values in place of its words in angle brackets."""
    (block,) = re.findall(r"```ini\n([^`]*POSTGRES_PASSWORD=[^`]*)```", GUIDE)
    given: dict[str, str] = {}
    for name, value in re.findall(r"(?m)^([A-Z_]+)=(.*)$", block):
        dummy = re.sub(r"<[^>]*>", f"0123456789abcdef{len(given)}", value)
        given[name] = re.sub(r"\$\{(\w+)\}", lambda other: given[other[1]], dummy)
    return given
