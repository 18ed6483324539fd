"""User names that imitate others, and passwords: what is the same, what is refused, and when it is hashed again."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from broker.accounts.names import lookup_key, parse_email, parse_name
from broker.accounts.passwords import ARGON2ID, check_new_password
from broker.errors import ApiError
from tests.accounts.opening import PASSWORD, QUICK, open_accounts, outcome_of
from tests.support.clock import ManualClock

SAME = ["ada", "Ada", "ADA", "ａｄａ", " ada ", "ᴬda", "\u00a0ada", "ⓐⓓⓐ"]
REFUSED = {
    "empty": "",
    "blanks": " \u3000 ",
    "zero width space": "a\u200bda",
    "zero width joiner": "a\u200dda",
    "word joiner": "ada\u2060",
    "byte order mark": "\ufeffada",
    "soft hyphen": "a\u00adda",
    "right to left override": "\u202eada",
    "isolate": "\u2066ada\u2069",
    "left to right mark": "ada\u200e",
    "line feed": "ada\nroot",
    "null": "ada\0",
    "escape": "\x1b[31mada",
    "line separator": "ada\u2028",
    "lone surrogate": "ada\ud800",
    "private use": "ada\ue000",
    "unassigned": "ada\u0378",
    "tag character": "ada\U000e0041",
    "Hangul filler": "ada\u3164",
    "half width Hangul filler": "\uffa0",
    "braille blank": "ada\u2800",
    "variation selector": "ada\ufe0f",
    "grapheme joiner": "a\u034fda",
    "only a mark": "\u0301da",
    "Cyrillic a in Latin": "\u0430da",
    "Greek omicron in Latin": "r\u03bfot",
    "65 characters": "a" * 65,
    "65 after normalisation": "\ufdfa" * 4,
    "very long": "a" * 100_000,
}


def test_names_that_look_the_same_are_the_same() -> None:
    assert {parse_name(name).key for name in SAME} == {"ada"}
    assert {lookup_key(name) for name in SAME} == {"ada"}
    assert parse_name("Straße").key == parse_name("STRASSE").key == parse_name("ſtraße").key
    assert parse_name("Zoë").key == parse_name("Zoe\u0308").key
    assert parse_name("  Ada   Lovelace ").shown == "Ada Lovelace"
    for name in (
        "Ada Lovelace",
        "Ольга",
        "小林",
        "Ελένη",
        "עדה",
        "İpek",
        "user_1",
        "a",
        "ada@example.com",
        "O'Hara",
        "👩",
    ):
        parsed = parse_name(name)
        assert parse_name(parsed.shown) == parsed
        assert lookup_key(parsed.key) == lookup_key(name) == parsed.key == unicodedata.normalize("NFKC", parsed.key)


@pytest.mark.parametrize("name", REFUSED.values(), ids=REFUSED.keys())
def test_deceptive_names_are_refused(name: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_name(name)
    assert (caught.value.code, caught.value.field) == ("invalid_request", "username")
    lookup_key(name)  # a login with such a name is refused like one with an unknown name


@pytest.mark.parametrize(
    "text", ["ada", "@x.y", "a@", "a b@x.y", "a@x\n.y", "a@b@c.d", "a@.y", f"a@{'x' * 260}", "a\u202e@x.y"]
)
def test_wrong_addresses_are_refused(text: str) -> None:
    with pytest.raises(ApiError):
        parse_email(text)
    assert parse_email(" ada@example.com ") == "ada@example.com"
    assert parse_email(" ") is parse_email(None) is None


@pytest.mark.parametrize("password", ["seven77", "ä" * 513, "Lovelace A", " lovelace a"])
def test_unfit_passwords_are_refused(password: str) -> None:
    with pytest.raises(ApiError):
        check_new_password(password, "Lovelace A")
    for fit in ("eight888", "ä" * 512, "        "):
        check_new_password(fit, "Lovelace A")


@pytest.mark.anyio
async def test_hashes_are_argon2id_and_are_made_again_with_new_parameters(tmp_path: Path, clock: ManualClock) -> None:
    async with open_accounts(tmp_path, clock, hashing=QUICK) as services:
        user = await services.users.add("ada", "Pässwörd")
        assert user.password_hash.startswith("$argon2id$v=19$m=8,t=1,p=1$")
    async with open_accounts(tmp_path, clock) as services:
        composed = unicodedata.normalize("NFD", "Pässwörd")  # another keyboard
        for _ in range(2):
            assert await outcome_of(services, "ada", composed) == "ok"
            stored = (await services.users.get(user.id)).password_hash
            assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
        assert await outcome_of(services, "ada", "Passwörd") == "unauthorized"
        assert await services.passwords.verify(None, PASSWORD) is False
        assert await services.passwords.verify("not a hash", PASSWORD) is False
    assert not ARGON2ID.check_needs_rehash(stored)
