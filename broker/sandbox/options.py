"""Options of a sandbox."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Options:
    """Times in seconds, prices in credits.

    api_key: the only key accepted; None accepts any that is not empty.
    webhook_key: signs callbacks, as kie.ai's webhookHmacKey; None sends them unsigned.
    duration: from the acceptance of a job to its end.
    callback_spacing: pause before each of the `callback_retries` attempts that follow a failed one.
    mood: faults of every job whose prompt has no tag: "lost", "late:30", or several, "late:30,twice".
    data_dir: folder in which jobs and files survive a restart; None keeps them in memory.
    base_url: the sandbox's address in result URLs of callbacks; None uses the bound or the last requested one.
    """

    api_key: str | None = None
    webhook_key: str | None = None
    duration: float = 1.0
    credits: float = 1000.0
    creates_per_window: int = 20
    window: float = 10.0
    callback_retries: int = 3
    callback_spacing: float = 1.0
    mood: str = "good"
    data_dir: Path | None = None
    base_url: str | None = None
    now: Callable[[], float] = time.time
