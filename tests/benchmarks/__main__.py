"""All of them, at sizes that take some minutes: `python -m tests.benchmarks`. Each command alone takes its sizes."""

from __future__ import annotations

import asyncio

from tests.benchmarks import hostile, intake, notify, postgres_paths, retention, simulation, waiters


async def main() -> None:
    await postgres_paths.main(0.3, 300)
    await notify.main(0.5)
    await retention.main(10_000, 2.0)
    await simulation.main(10.0)
    await intake.main(3)
    await hostile.main(4.0)
    await waiters.main(1000)


if __name__ == "__main__":
    asyncio.run(main())
