"""`broker mcp`: tools for agents, on standard input and output."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from broker.bootstrap import load_settings
from broker.cli.connection import broker_address, quiet_logs
from broker.cli.console import CommandError


async def serve_mcp(*, out: Path | None, seconds: float) -> None:
    """Serve the tools until the client closes standard input. out: folder of the results."""
    if find_spec("mcp") is None:
        raise CommandError(
            "`broker mcp` needs the MCP SDK: install the broker with its extra, pip install 'nano-banana-broker[mcp]'."
        )
    from broker.mcp.server import serve_stdio  # an optional dependency

    settings = load_settings()
    quiet_logs(settings)
    base, key = broker_address(settings)
    folder = (out or Path.home() / "nano-banana").absolute()
    await serve_stdio(base, key, folder=folder, call_seconds=seconds)
