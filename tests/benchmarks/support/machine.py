"""Facts about the machine, and a calibration that shows whether it is quiet enough to judge."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

LOOP: Final = 150_000
SYNCS: Final = 40
PAGE: Final = bytes(4096)


@dataclass
class Calibration:
    """Seconds of the same work, again and again: pure CPU, and a burst of fdatasync."""

    folder: Path
    cpu: list[float] = field(default_factory=list)
    disk: list[float] = field(default_factory=list)

    def take(self) -> None:
        """Measure once; the best of three each, so that only what lasts is seen."""
        self.cpu.append(min(_cpu_seconds() for _ in range(3)))
        self.disk.append(min(_disk_seconds(self.folder) for _ in range(3)))

    def start_anew(self) -> None:
        self.cpu.clear()
        self.disk.clear()


def _cpu_seconds() -> float:
    began, total = time.perf_counter(), 0
    for number in range(LOOP):
        total += number * number
    return time.perf_counter() - began


def _disk_seconds(folder: Path) -> float:
    file = os.open(folder / "calibration", os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        began = time.perf_counter()
        for _ in range(SYNCS):
            os.pwrite(file, PAGE, 0)
            os.fdatasync(file)
        return time.perf_counter() - began
    finally:
        os.close(file)


def other_load(seconds: float = 0.3) -> float:
    """Return the share of all processors that is in use now, while the benchmark itself rests."""
    before = _processor_ticks()
    time.sleep(seconds)
    idle, total = (after - begun for after, begun in zip(_processor_ticks(), before, strict=True))
    return 1 - idle / max(1, total)


def _processor_ticks() -> tuple[int, int]:
    """Return the ticks that were idle, and all; those that wait for the disk are idle."""
    ticks = list(map(int, Path("/proc/stat").read_text("ascii").split("\n", 1)[0].split()[1:9]))
    return ticks[3] + ticks[4], sum(ticks)


def file_system(folder: Path) -> str:
    """Return the type of the file system that holds the folder, as in /proc/mounts."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text("utf-8").splitlines()]
    above = [(point, kind) for point, kind in mounts if folder.resolve().is_relative_to(point)]
    return max(above, key=lambda mount: len(mount[0]))[1]


def facts(folder: Path) -> Sequence[str]:
    """Return a sentence for each fact that the reader of the table needs."""
    kind = file_system(folder)
    disk = f"disk: {kind}" + (", WHICH IS MEMORY: durable writes cost nothing here" if kind == "tmpfs" else "")
    load = "wrk" if wrk_installed() else "a raw asyncio client (wrk is not installed), which may be the bottleneck"
    cores = len(os.sched_getaffinity(0))
    return (
        f"machine: {cores} cores, Linux {platform.release()}, CPython {platform.python_version()}; the load generator, "
        "the pretend provider and the subject share them",
        disk,
        f"load generator: {load}; steady rates and counted creates by a raw asyncio client in a process of its own",
        "CPU: user and system time of all threads and children of the subject, per operation",
    )


def wrk_installed() -> bool:
    return shutil.which("wrk") is not None


def nginx_installed() -> bool:
    return shutil.which("nginx") is not None
