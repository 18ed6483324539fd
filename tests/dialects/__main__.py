"""Prints the matrix of all clients, in Python and in Node, at the emulators of all providers.

usage: python -m tests.dialects [CLIENT…]
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

from anyio import to_thread

from broker.logs import configure_logging
from tests.dialects import clients
from tests.dialects.documentation import read_examples
from tests.dialects.matrix import (
    KEY,
    NODE_CLIENTS,
    NODE_FOLDER,
    SETTINGS,
    Cell,
    base_url,
    open_column,
    run_node,
    run_python,
    table,
)
from tests.support.emulators import PROVIDERS, broker_before

HAS_NODE: Final = shutil.which("node") is not None and (NODE_FOLDER / "node_modules").exists()


async def run_matrix(chosen: list[str]) -> bool:
    """Run the clients, and print the matrix. Return whether all cells are well."""
    runs = dict.fromkeys(clients.NAMES, run_python)
    runs |= {f"{name} (Node)": run_node for name in NODE_CLIENTS if HAS_NODE}
    runs = {name: run for name, run in runs.items() if not chosen or name.split()[0] in chosen}
    failures: dict[Cell, str] = {}
    for provider in PROVIDERS:
        with tempfile.TemporaryDirectory() as folder:
            async with open_column(provider, Path(folder)) as broker:
                for name, run in runs.items():
                    try:
                        await run(name.split()[0], broker)
                    except Exception as error:  # an SDK raises its own
                        cell = Cell(client=name, provider=provider)
                        failures[cell] = f"{type(error).__name__}: {str(error)[-600:]}"
    sys.stdout.write(table(failures, list(runs)) + "\n")
    if not HAS_NODE:
        sys.stdout.write("The clients in Node were left out: install Node, and run `make e2e`.\n")
    return not failures


async def run_node_examples() -> bool:
    """Run the Node examples of docs/dialects.md; print those that fail."""
    failed = False
    with tempfile.TemporaryDirectory() as folder, tempfile.NamedTemporaryFile(dir=NODE_FOLDER, suffix=".mjs") as module:
        async with broker_before("kie", Path(folder) / "data", **SETTINGS) as broker:
            for example in read_examples("js"):
                await to_thread.run_sync(Path(module.name).write_text, example.text, "utf-8")
                environment = {**os.environ, "BROKER_URL": base_url(broker), "BROKER_KEY": KEY}
                process = await asyncio.create_subprocess_exec("node", module.name, cwd=folder, env=environment)
                is_well = await process.wait() == 0 and await to_thread.run_sync(_take, Path(folder) / "image.png")
                sys.stdout.write(f"{example.name}: {'ok' if is_well else 'FAILED'}\n")
                failed |= not is_well
    return not failed


def _take(image: Path) -> bool:
    """Remove an image; return whether it was there."""
    is_there = image.exists()
    image.unlink(missing_ok=True)
    return is_there


async def main(chosen: list[str]) -> bool:
    is_well = await run_matrix(chosen)
    return (await run_node_examples() if HAS_NODE and not chosen else True) and is_well


if __name__ == "__main__":
    configure_logging("CRITICAL", "console", None)
    sys.exit(not asyncio.run(main(sys.argv[1:])))
