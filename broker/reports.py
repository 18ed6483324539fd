"""What a provider says about a job: one of three words, whoever it was that we heard it from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Billed = Literal["yes", "no", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Pending:
    """The job exists, or may exist, and is not finished.

    check_in: seconds after which the provider would like to be asked again; 0 = ask now; None = as usual.
    stage: the provider's own word for how far it is. percent: if it says one; nobody else ever does.
    """

    job_id: str | None = None
    check_in: float | None = None
    stage: str | None = None
    percent: float | None = None


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The job succeeded.

    outputs: URLs of the results, in order; empty when the provider claims success and names none.
    cost: what it took, in the provider's unit (kie: credits); None when it did not say.
    ended_at: when, by the provider's own clock, in seconds since the epoch; None when it did not say. For measuring
    only: it decides nothing, and makes no difference between two reports.
    """

    outputs: tuple[str, ...]
    job_id: str | None = None
    cost: float | None = None
    ended_at: float | None = field(default=None, compare=False)


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The job, or the request to make one, was refused or failed.

    code: from the closed set of task error codes. message: the provider's own words, untranslated, for `errorDetail`.
    provider_code: its own code. retryable: another attempt may succeed. billed: whether this attempt cost money.
    retry_in: seconds the provider asked us to wait, already parsed; None when it did not say. ended_at: as above.
    known: the code was looked up, not guessed. sent: a request that could make a job left the house.
    """

    code: str
    message: str
    retryable: bool
    billed: Billed = "unknown"
    job_id: str | None = None
    provider_code: str | None = None
    retry_in: float | None = None
    ended_at: float | None = field(default=None, compare=False)
    known: bool = True
    sent: bool = True


Report = Pending | Finished | Failed
