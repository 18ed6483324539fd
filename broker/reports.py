"""Reports of a provider about a job: the same three types for a submission, a status check and a callback."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

Billed = Literal["yes", "no", "unknown"]

STORED_PREFIX: Final = "stored:"
"""Beginning of an output that is in the blob store already; its name there follows."""

ACCOUNT_CODES: Final = frozenset({"provider_auth", "provider_credits", "provider_rate_limited", "provider_unavailable"})
"""Errors of one account, not of the order: another key or another provider may serve it."""


@dataclass(frozen=True, kw_only=True)
class Pending:
    """The job exists, or may exist, and is not finished."""

    job_id: str | None = None
    check_in: float | None = None
    """Seconds until the next check, as the provider requested; 0: check now; None: as usual."""
    stage: str | None = None
    """The provider's own word for its progress."""
    percent: float | None = None
    """Progress, if the provider reports it."""
    deadline_in: float | None = None
    """Seconds that the provider has for this job; None: as usual. Of the response to an order only."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The job succeeded."""

    outputs: tuple[str, ...]
    """The results, in order: URLs, or what a `ResultSink` returned; empty for a success without any."""
    job_id: str | None = None
    cost: float | None = None
    """In the provider's unit; None if not reported."""
    texts: tuple[str, ...] = ()
    """Texts that the model wrote beside the images, in order."""
    turn: str | None = field(default=None, repr=False)
    """The model's turn as the provider must get it back in a later turn of the conversation, byte for byte."""
    tokens: Mapping[str, int] = field(default_factory=dict)
    """Tokens of `input`, `text` and `image`, as the provider counted them; empty if it did not."""
    ended_at: float | None = field(default=None, compare=False)
    """By the provider's own clock, in seconds since the epoch; None if not reported. For measurements only."""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The job failed, or the request to create it was refused."""

    code: str
    """From the closed set of task error codes."""
    message: str
    """The provider's own words, untranslated."""
    retryable: bool
    """True if another attempt may succeed."""
    billed: Billed = "unknown"
    """Whether this attempt cost money."""
    job_id: str | None = None
    provider_code: str | None = None
    retry_in: float | None = None
    """Seconds to wait, as the provider requested; None if it did not."""
    ended_at: float | None = field(default=None, compare=False)
    """As in `Finished`."""
    known: bool = True
    """True if the code is from the provider's error table; False if it was guessed."""
    sent: bool = True
    """True if a request was sent that could create a job."""
    cannot_serve: bool = False
    """True if this provider can never serve the order: it does not have the model, or cannot get the references."""

    @property
    def another_may_serve(self) -> bool:
        """True if another provider may serve the order: the fault is not in the order itself."""
        return self.cannot_serve or self.is_account_error or self.code == "provider_error"

    @property
    def is_account_error(self) -> bool:
        """True if the key gets a cooldown; another key of the same provider may work."""
        return self.code in ACCOUNT_CODES and not self.cannot_serve


Report = Pending | Finished | Failed
