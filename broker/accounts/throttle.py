"""Throttle of logins: decides before a password is looked at, for all processes, so that guessing costs little.

An attempt is counted before its password is verified, and given back if that was right. A device or an address from
which a user has logged in is known for that user.

| attempt from | must pass |
|---|---|
| a known device (its cookie) | its own series, and the allowance of the account's known devices |
| a known address | the series of account and address, the allowances of the address and of the account's known ones |
| elsewhere | the series, and the allowances of the address, of the account and of all strangers |
| a session, for the password again | its own series, and the allowance of the account's sessions |

A series allows some attempts at once and then has a growing pause (`SERIES`). The allowances of the account and of all
strangers exist twice: for the `FIRST_ATTEMPTS` of an address at an account, and for its later ones. So what strangers
use up can neither be the owner's on a known device, nor, by repeating guesses from the same addresses, the owner's in a
new place. An address is an IPv4 address or an IPv6 network of 64 bits.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from broker.clock import Clock
from broker.errors import ApiError
from storage.accounts.login_attempts import Allowance, LoginAttemptCounts, LoginAttempts, LoginClients, SeriesRule
from storage.errors import Stale
from storage.sql.database import Statement

SERIES: Final = SeriesRule(free_attempts=10, first_pause=1.0, max_pause=60.0, kept_seconds=86_400.0)
"""A program may log in several times at once."""
FIRST_ATTEMPTS: Final = 3

PER_ADDRESS: Final = Allowance(burst=20, interval=30.0)
PER_ACCOUNT_FIRST: Final = Allowance(burst=10, interval=1.0)
PER_ACCOUNT_LATER: Final = Allowance(burst=10, interval=10.0)
STRANGERS_FIRST: Final = Allowance(burst=100, interval=0.2)
STRANGERS_LATER: Final = Allowance(burst=20, interval=1.0)
RIGHT_PASSWORDS_PER_ACCOUNT: Final = Allowance(burst=30, interval=2.0)
"""Used up by right passwords alone, so by no stranger: a program that logs in for every request would hash all day."""
PER_KNOWN: Final = Allowance(burst=30, interval=2.0)
"""Of one account, for its known devices, its known addresses, and its sessions: a user can collect many of each."""
REGISTRATIONS_PER_ADDRESS: Final = Allowance(burst=10, interval=60.0)
REGISTRATIONS: Final = Allowance(burst=50, interval=2.0)

_WITH_PORT: Final = re.compile(r"(?:\[([^\]]+)\]|([^:]+))(?::[0-9]*)?")
MAX_RACES: Final = 5
"""Decisions about one attempt, at most: another one may take the last of an allowance at the same moment."""


def max_verifications_of_strangers(seconds: float) -> float:
    """Return how many passwords are verified within a time for addresses and devices that no account knows, at most."""
    return sum(one.burst + seconds / one.interval for one in (STRANGERS_FIRST, STRANGERS_LATER))


@dataclass(frozen=True, kw_only=True)
class LoginClient:
    """The origin of a login."""

    agent: str = ""
    """User-Agent."""
    address: str = ""
    device: str | None = field(default=None, repr=False)
    """Secret of the device cookie, which a browser gets with its first login."""
    cookie: str | None = field(default=None, repr=False)
    """Secret of the session cookie that the browser has now; a login replaces it."""


@dataclass(frozen=True, kw_only=True)
class LoginRule:
    """The counts that an attempt must pass: a series, and allowances by their keys."""

    series: str
    successes: str
    """Key of the allowance that a right password takes from."""
    always: Mapping[str, Allowance] = field(default_factory=dict)
    first: Mapping[str, Allowance] = field(default_factory=dict)
    """For the first attempts of the series."""
    later: Mapping[str, Allowance] = field(default_factory=dict)
    """For those after them."""

    @property
    def keys(self) -> list[str]:
        return [self.series, self.successes, *self.always, *self.first, *self.later]

    def allowances(self, failures: int) -> dict[str, Allowance]:
        """Return the allowances of the next attempt after a number of them."""
        return {**self.always, **(self.first if failures < FIRST_ATTEMPTS else self.later)}


@dataclass(frozen=True, kw_only=True)
class LoginAdmission:
    """An attempt that was counted, whose password may be looked at."""

    rule: LoginRule
    taken: Mapping[str, Allowance]
    is_known_device: bool = False


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
        by_address = self._key("series", account, address)
        of_address = {self._key("address", address): PER_ADDRESS}
        of_account, successes = self._key("account", account), self._successes(user_id)
        rules = {
            "device": LoginRule(
                series=self._key("series", account, device),
                successes=successes,
                always={self._key("devices", user_id or ""): PER_KNOWN},
            ),
            "address": LoginRule(
                series=by_address,
                successes=successes,
                always={**of_address, self._key("addresses", user_id or ""): PER_KNOWN},
            ),
            "elsewhere": LoginRule(
                series=by_address,
                successes=successes,
                always=of_address,
                first={f"{of_account}:first": PER_ACCOUNT_FIRST, "strangers:first": STRANGERS_FIRST},
                later={f"{of_account}:later": PER_ACCOUNT_LATER, "strangers:later": STRANGERS_LATER},
            ),
        }
        digests = {"device": device, "address": address}
        for _ in range(MAX_RACES):
            keys = [key for rule in rules.values() for key in rule.keys]
            counted = await self.counts.read(keys, user_id=user_id or "", clients=list(digests.values()))
            known = next((name for name, digest in digests.items() if digest in counted.known_clients), "elsewhere")
            if admission := await self._count(rules[known], counted.by_key, is_known_device=known == "device"):
                return admission
        raise _too_fast(SERIES.first_pause)

    async def acquire_confirmation(self, user_id: str, session_id: str) -> LoginAdmission:
        """Count a password that a logged-in user gives again, in a series of the session."""
        rule = LoginRule(
            series=self._key("series", user_id, session_id),
            successes=self._successes(user_id),
            always={self._key("sessions", user_id): PER_KNOWN},
        )
        for _ in range(MAX_RACES):
            counted = await self.counts.read(rule.keys)
            if admission := await self._count(rule, counted.by_key):
                return admission
        raise _too_fast(SERIES.first_pause)

    async def acquire_registration(self, client: LoginClient) -> None:
        """Count a registration."""
        of_address = self._key("registrations", self._address_digest(client.address))
        allowances = {of_address: REGISTRATIONS_PER_ADDRESS, "registrations": REGISTRATIONS}
        for _ in range(MAX_RACES):
            now, counted = self.clock.now(), await self.counts.read(list(allowances))
            if wait := _allowance_wait(counted.by_key, allowances, now):
                raise _too_fast(wait)
            try:
                await self.counts.database.transact(*self._take(allowances, now))
            except Stale:
                continue
            return
        raise _too_fast(SERIES.first_pause)

    def end_series(self, admission: LoginAdmission) -> list[Statement]:
        """Return the statements that end a series after a right password, and give back what it has taken.

        The allowance of all strangers is not given back: it limits the work, and the work was done.
        """
        given_back = {key: one for key, one in admission.taken.items() if not key.startswith("strangers:")}
        success = self.counts.take_one(admission.rule.successes, RIGHT_PASSWORDS_PER_ACCOUNT, self.clock.now())
        return [
            self.counts.delete_key(admission.rule.series),
            success._replace(must_change=False),  # what several took at once is missing later
            *(self.counts.give_back(key, allowance) for key, allowance in given_back.items()),
        ]

    def remember(self, user_id: str, client: LoginClient, device: str | None) -> list[Statement]:
        """Return the statements that make a client known for a user. device: secret of its device cookie."""
        now = self.clock.now()
        digests = [self._address_digest(client.address), *([self._device_digest(device)] if device else [])]
        return [self.clients.set_known(user_id, digest, now) for digest in digests]

    async def _count(
        self, rule: LoginRule, counted: Mapping[str, LoginAttempts], *, is_known_device: bool = False
    ) -> LoginAdmission | None:
        """Count an attempt by what was read; None if it changed since. Raises `ApiError("rate_limited")`."""
        now, row = self.clock.now(), counted.get(rule.series)
        failures = row.failures if row is not None and row.forget_at > now else 0
        allowances = rule.allowances(failures)
        checked = {**allowances, rule.successes: RIGHT_PASSWORDS_PER_ACCOUNT}
        if wait := max(_series_wait(row, now), _allowance_wait(counted, checked, now)):
            raise _too_fast(wait)
        try:
            await self.counts.database.transact(
                self.counts.count_in_series(rule.series, SERIES, now), *self._take(allowances, now)
            )
        except Stale:
            return None
        return LoginAdmission(rule=rule, taken=allowances, is_known_device=is_known_device)

    def _take(self, allowances: Mapping[str, Allowance], now: float) -> list[Statement]:
        return [self.counts.take_one(key, allowance, now) for key, allowance in allowances.items()]

    def _successes(self, user_id: str | None) -> str:
        return self._key("successes", user_id or "")

    def _key(self, kind: str, *parts: str) -> str:
        """Return a key in which no name and no address can be read that someone typed."""
        return f"{kind}:{self._digest(kind, *parts)}"

    def _address_digest(self, address: str) -> str:
        return self._digest("address", address_prefix(address))

    def _device_digest(self, device: str) -> str:
        return self._digest("device", device)

    def _digest(self, *parts: str) -> str:
        message = "\x1f".join(("login-throttle.v1", *parts)).encode("utf-8", "replace")
        return hmac.new(self.secret, message, hashlib.sha256).hexdigest()[:40]


def address_prefix(address: str) -> str:
    """Return what counts as one client: an IPv4 address, an IPv6 network of 64 bits, or the text itself.

    A port does not count: some proxies write one.
    """
    with_port = _WITH_PORT.fullmatch(address)
    host = (with_port[1] or with_port[2]) if with_port else address
    try:
        parsed = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is None:
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)


def _series_wait(row: LoginAttempts | None, now: float) -> float:
    wait = row.free_at - now if row is not None else 0.0
    return 0.0 if wait > SERIES.max_pause else max(0.0, wait)  # further ahead: the clock was set back


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
