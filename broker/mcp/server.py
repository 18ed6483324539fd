"""Declares the tools and the images to the official SDK, and serves them over stdio."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Final

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ResourceError
from mcp_types import ToolAnnotations

from broker.client import AsyncClient, BrokerError
from broker.mcp.images import RESOURCE_PREFIX, ImageFiles
from broker.mcp.tools import BrokerTools

PATIENCE_SECONDS: Final = 5.0
"""For an unreachable broker: a call must end in time, with the reason."""
MEDIA_TYPES: Final = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}
"""By suffix of the name."""
INSTRUCTIONS: Final = """\
Makes and edits images. A call waits for at most {seconds:g} seconds; if the image takes longer, the answer has its \
task id, and get_task waits on. An order is never lost, so call get_task instead of ordering again. Results are saved \
to {folder}, and each has a uri that edit takes as a reference."""


async def serve_stdio(base: str, key: str | None, *, folder: Path, call_seconds: float) -> None:
    """Serve the tools of a broker on standard input and output, until the input ends.

    base, key: of the broker, which need not run yet. folder: where results are saved.
    """
    async with AsyncClient(base, key=key, patience=PATIENCE_SECONDS) as client:
        files = ImageFiles(client=client, folder=folder)
        tools = BrokerTools(client=client, files=files, call_seconds=call_seconds)
        await build_server(tools, files).run_stdio_async()


def build_server(tools: BrokerTools, files: ImageFiles) -> MCPServer[None]:
    """Return the server with its tools and its resources."""
    server: MCPServer[None] = MCPServer(
        "nano-banana-broker",
        title="Nano Banana broker",
        version=metadata.version("nano-banana-broker"),
        instructions=INSTRUCTIONS.format(seconds=tools.call_seconds, folder=files.folder),
        log_level="WARNING",
    )
    orders = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=False, open_world_hint=True)
    reads = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=True)
    server.add_tool(tools.generate, title="Generate images", annotations=orders)
    server.add_tool(tools.edit, title="Edit images", annotations=orders)
    server.add_tool(tools.get_task, title="Get a task", annotations=reads)
    server.add_tool(tools.list_models, title="List models", annotations=reads)
    for suffix, media_type in MEDIA_TYPES.items():
        _add_images(server, files, suffix, media_type)
    return server


def _add_images(server: MCPServer[None], files: ImageFiles, suffix: str, media_type: str) -> None:
    @server.resource(
        f"{RESOURCE_PREFIX}{{stem}}.{suffix}",
        name=f"{suffix} image",
        description="A result, by the uri in the answer of a tool.",
        mime_type=media_type,
    )
    async def read_image(stem: str) -> bytes:
        try:
            return await files.download(f"{stem}.{suffix}")
        except BrokerError as error:
            raise ResourceError(str(error)) from error
