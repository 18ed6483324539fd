"""All of them, at sizes that take some minutes: `python -m tests.benchmarks`. Each command alone takes its sizes."""

from __future__ import annotations

import asyncio

from tests.benchmarks import notify, postgres_paths, retention, simulation


async def main() -> None:
    await postgres_paths.main(0.4, 600)
    await notify.main(1.0)
    await retention.main(20_000, 3.0)
    await simulation.main(15.0)


if __name__ == "__main__":
    asyncio.run(main())
