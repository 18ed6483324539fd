"""Throttle of logins: decides before a password is looked at, for all processes, so that guessing costs little.

An attempt is counted before its password is verified, and given back if that was right. A device or an address from
which a user has logged in is known for that user.

| attempt from | must pass |
|---|---|
| a known device (its cookie) | its own series |
| a known address | the series of account and address, and the allowance of the address |
| elsewhere | both, and the allowances of the account and of all strangers |

A series allows `FREE_ATTEMPTS` at once and then a growing delay, up to `MAX_DELAY_SECONDS`. The last two allowances
exist twice: for the first attempts of an address at an account, and for its later ones. So what strangers use up can
neither be the owner's on a known device, nor, by repeating guesses from the same addresses, the owner's in a new place.
An address is an IPv4 address or an IPv6 network of 64 bits.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from broker.clock import Clock
from broker.errors import ApiError
from storage.accounts.login_attempts import Allowance, LoginAttemptCounts, LoginAttempts, LoginClients
from storage.sql.database import Stale, Statement

FREE_ATTEMPTS: Final = 3
FIRST_DELAY_SECONDS: Final = 1.0
MAX_DELAY_SECONDS: Final = 60.0
SERIES_KEPT_SECONDS: Final = 86_400.0
"""A series without an attempt for so long begins again."""

PER_ADDRESS: Final = Allowance(burst=20, interval=30.0)
PER_ACCOUNT_FIRST: Final = Allowance(burst=10, interval=1.0)
PER_ACCOUNT_LATER: Final = Allowance(burst=10, interval=10.0)
STRANGERS_FIRST: Final = Allowance(burst=100, interval=0.2)
STRANGERS_LATER: Final = Allowance(burst=20, interval=1.0)
REGISTRATIONS_PER_ADDRESS: Final = Allowance(burst=10, interval=60.0)
REGISTRATIONS: Final = Allowance(burst=50, interval=2.0)

MAX_RACES: Final = 5
"""How often an attempt is decided again because another one was counted at the same moment."""


@dataclass(frozen=True, kw_only=True)
class LoginClient:
    """Where a login comes from."""

    agent: str = ""
    """User-Agent."""
    address: str = ""
    device: str | None = field(default=None, repr=False)
    """Secret of the device cookie, which a browser gets with its first login."""
    cookie: str | None = field(default=None, repr=False)
    """Secret of the session cookie that the browser has now; a login replaces it."""


@dataclass(frozen=True, kw_only=True)
class LoginAdmission:
    """An attempt that was counted."""

    series: str
    allowances: Mapping[str, Allowance]
    """By key; those that a right password gives back."""


@dataclass(frozen=True, kw_only=True)
class LoginThrottle:
    """Counts attempts, and refuses those that come too fast."""

    clock: Clock
    counts: LoginAttemptCounts
    clients: LoginClients
    secret: bytes
    """Makes the digests."""

    async def acquire(self, account: str, client: LoginClient, user_id: str | None) -> LoginAdmission:
        """Count an attempt. account: the name's key, of a user or not. user_id: of the user, if there is one.

        Raises `ApiError("rate_limited")` with the seconds to wait; then nothing is counted.
        """
        address, device = self._address_digest(client.address), self._device_digest(client.device or "")
        known = await self.clients.list_known(user_id or "", [address, device])
        if device in known:
            return await self._acquire(self._key("series", account, device), {})
        series = self._key("series", account, address)
        given_back = {self._key("address", address): PER_ADDRESS}
        if address in known:
            return await self._acquire(series, given_back)
        account_key = self._key("account", account)
        return await self._acquire(
            series,
            given_back,
            first={f"{account_key}:first": PER_ACCOUNT_FIRST, "strangers:first": STRANGERS_FIRST},
            later={f"{account_key}:later": PER_ACCOUNT_LATER, "strangers:later": STRANGERS_LATER},
        )

    async def acquire_confirmation(self, account: str, session_id: str) -> LoginAdmission:
        """Count a password that a logged-in user gives again, in a series of the session."""
        return await self._acquire(self._key("series", account, session_id), {})

    async def acquire_registration(self, client: LoginClient) -> None:
        """Count a registration."""
        address = self._key("registration", self._address_digest(client.address))
        await self._take({address: REGISTRATIONS_PER_ADDRESS, "registrations": REGISTRATIONS})

    def admit(self, admission: LoginAdmission) -> list[Statement]:
        """Return the statements that end a series and give back what a right password has not cost."""
        return [
            self.counts.delete_key(admission.series),
            *(self.counts.give_back(key, allowance) for key, allowance in admission.allowances.items()),
        ]

    def remember(self, user_id: str, client: LoginClient, device: str | None) -> list[Statement]:
        """Return the statements that make a client known for a user. device: secret of its device cookie."""
        now = self.clock.now()
        digests = [self._address_digest(client.address), *([self._device_digest(device)] if device else [])]
        return [self.clients.set_known(user_id, digest, now) for digest in digests]

    async def is_known_device(self, user_id: str, client: LoginClient) -> bool:
        digest = self._device_digest(client.device or "")
        return digest in await self.clients.list_known(user_id, [digest])

    async def _acquire(
        self,
        series: str,
        given_back: Mapping[str, Allowance],
        *,
        first: Mapping[str, Allowance] | None = None,
        later: Mapping[str, Allowance] | None = None,
    ) -> LoginAdmission:
        for _ in range(MAX_RACES):
            now = self.clock.now()
            counted = await self.counts.list_counted([series, *given_back, *(first or {}), *(later or {})])
            row = counted.get(series)
            failures = row.failures if row is not None and row.forget_at > now else 0
            shared = (first if failures < FREE_ATTEMPTS else later) or {}
            allowances = {**given_back, **shared}
            wait = max(_series_wait(row, now), _allowance_wait(counted, allowances, now))
            if wait > 0:
                raise _too_fast(wait)
            next_row = LoginAttempts(
                key=series,
                failures=failures + 1,
                free_at=now + delay_seconds(failures + 1),
                forget_at=now + SERIES_KEPT_SECONDS,
            )
            statements = [self.counts.set_series(next_row, seen=row.failures if row is not None else 0)]
            statements += [self.counts.take_one(key, one, now) for key, one in allowances.items()]
            try:
                await self.counts.database.transact(*statements)
            except Stale:
                continue
            # the allowance of all strangers is one of work, which was done
            back = {key: one for key, one in allowances.items() if not key.startswith("strangers:")}
            return LoginAdmission(series=series, allowances=back)
        raise _too_fast(FIRST_DELAY_SECONDS)

    async def _take(self, allowances: Mapping[str, Allowance]) -> None:
        now = self.clock.now()
        wait = _allowance_wait(await self.counts.list_counted(list(allowances)), allowances, now)
        if wait > 0:
            raise _too_fast(wait)
        try:
            await self.counts.database.transact(
                *(self.counts.take_one(key, allowance, now) for key, allowance in allowances.items())
            )
        except Stale:
            raise _too_fast(FIRST_DELAY_SECONDS) from None

    def _key(self, kind: str, *parts: str) -> str:
        """Return a digest: a name or address that someone typed cannot be read in the database."""
        return f"{kind}:{self._digest(kind, *parts)}"

    def _address_digest(self, address: str) -> str:
        return self._digest("address", address_prefix(address))

    def _device_digest(self, device: str) -> str:
        return self._digest("device", device)

    def _digest(self, *parts: str) -> str:
        message = "\x1f".join(("login-throttle.v1", *parts)).encode("utf-8", "replace")
        return hmac.new(self.secret, message, hashlib.sha256).hexdigest()[:40]


def delay_seconds(failures: int) -> float:
    """Return the pause after a number of attempts in a series."""
    if failures < FREE_ATTEMPTS:
        return 0.0
    return min(MAX_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2.0 ** min(failures - FREE_ATTEMPTS, 30))


def address_prefix(address: str) -> str:
    """Return what counts as one client: an IPv4 address, an IPv6 network of 64 bits, or the text itself."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is None:
            return str(ipaddress.ip_network((parsed, 64), strict=False))
        return str(parsed.ipv4_mapped)
    return str(parsed)


def _series_wait(row: LoginAttempts | None, now: float) -> float:
    wait = row.free_at - now if row is not None else 0.0
    return 0.0 if wait > MAX_DELAY_SECONDS else max(0.0, wait)  # further ahead: the clock was set back


def _allowance_wait(counted: Mapping[str, LoginAttempts], allowances: Mapping[str, Allowance], now: float) -> float:
    waits = [0.0]
    for key, allowance in allowances.items():
        if (row := counted.get(key)) is not None and row.free_at <= now + allowance.full_seconds:
            waits.append(row.free_at - (allowance.full_seconds - allowance.interval) - now)
    return max(waits)


def _too_fast(wait: float) -> ApiError:
    seconds = max(1, math.ceil(wait))
    return ApiError(
        "rate_limited",
        f"Too many attempts: try again in {seconds} seconds.",
        retryable=True,
        retry_after=float(seconds),
        message_key="too_many_logins",
    )
