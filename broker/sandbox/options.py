"""Options of a sandbox."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a sandbox; times in seconds, prices in credits."""

    api_key: str | None = None
    """The only key accepted; None accepts any that is not empty."""
    webhook_key: str | None = None
    """Signs callbacks, as kie.ai's webhookHmacKey; None sends them unsigned."""
    duration: float = 1.0
    """From the acceptance of a job to its end."""
    credits: float = 1000.0
    creates_per_window: int = 20
    """In ten seconds."""
    callback_retries: int = 3
    callback_spacing: float = 1.0
    """Before each retry of a callback."""
    mood: str = "good"
    """Faults of every job whose prompt has no tag: "lost", "late:30", or several, "late:30,twice"."""
    data_dir: Path | None = None
    """Folder in which jobs and files survive a restart; None keeps them in memory."""
    now: Callable[[], float] = time.time
