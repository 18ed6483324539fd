"""An account with a row in every table that can have one, and what a database shows of it."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

from pydantic import SecretStr

from storage.accounts.provider_keys import ProviderKey
from storage.accounts.sessions import Session, SessionSecret
from storage.accounts.users import User
from storage.attempts import Attempt
from storage.conversations.turns import NewTurn
from storage.files.resumable_uploads import ResumableUpload
from storage.files.uploaded_files import UploadedFile
from storage.ids import (
    new_account_name,
    new_file_id,
    new_file_owner,
    new_provider_key_id,
    new_session_id,
    new_task_id,
    new_turn_id,
    new_upload_id,
    new_upload_owner,
)
from storage.sql.rows import insert_row
from tests.privacy.canaries import WORD, Planted, add_key, add_user, plant_content
from tests.support.api import NEVER, ApiBroker, png

TABLES: Final = tuple(
    re.findall(r"CREATE TABLE (\w+)", files("storage.sql.migrations").joinpath("0001_initial.sql").read_text("utf-8"))
)
WITHOUT_OWNER: Final = frozenset(
    """budget_days provider_pauses callback_totals answer_senders cluster_state periodic_jobs login_attempts
    owner_deletions""".split()
)
"""Tables without anything of an account: login_attempts has digests, which are forgotten after a day."""
LEDGER: Final = """INSERT INTO ledger
    (day, owner, provider, key_id, model, billed, attempts, duplicates, unpriced, cost, usd_estimated, usd)
    VALUES (:day, :owner, :provider, :key, 'nano-banana', 'yes', 2, 0, 0, 8.0, 0.04, 0.04)"""

Dump = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class PlantedAccount:
    """An account and the texts by which its rows are recognised."""

    user: User
    content: Planted
    marks: frozenset[str]

    def mentions(self, dump: Dump) -> dict[str, list[dict[str, Any]]]:
        """Return the rows of a database that hold one of the marks, by table."""
        found = {
            table: [row for row in rows if any(mark in str(value) for mark in self.marks for value in row.values())]
            for table, rows in dump.items()
        }
        return {table: rows for table, rows in found.items() if rows}


async def dump_database(broker: ApiBroker) -> Dump:
    """Return every row of every table, in an order of their content."""
    read = {table: await broker.services.database.fetch(f"SELECT * FROM {table}") for table in TABLES}
    return {table: sorted((dict(row) for row in rows), key=str) for table, rows in read.items()}


async def plant_account(broker: ApiBroker, name: str) -> PlantedAccount:
    """Store a user with a row in every table that is not in `WITHOUT_OWNER`."""
    user = await add_user(broker, name)
    content = await plant_content(broker, user.id, first=secrets.randbits(60))
    now, database, tables = broker.services.clock.now(), broker.services.database, broker.services.tables
    _, key = await add_key(broker, user.id, f"{name}'s key")
    session = Session(
        id=new_session_id(), user_id=user.id, kind="cookie", client=name, address=name, created_at=now,
        last_seen_at=now, expires_at=NEVER,
    )  # fmt: skip
    secret = SessionSecret(digest=secrets.token_hex(32), session_id=session.id, kind="cookie", expires_at=NEVER)
    account, marks = new_account_name("kie"), [user.id, name, content.tasks[0].id, session.id, key.id]
    provider_key = await _plant_provider_key(broker, user.id, account)
    file, upload = await _plant_file(broker, user.id, name), await _plant_upload(broker, user.id, name)
    for table, row in (
        ("sessions", session),
        ("session_secrets", secret),
        ("uploaded_files", file),
        ("resumable_uploads", upload),
    ):
        await database.transact(insert_row(table, row))
    params: dict[str, Any] = {"owner": user.id, "now": now, "day": int(now) // 86_400, "name": name}
    for sql in (
        "INSERT INTO login_clients (user_id, digest, used_at) VALUES (:owner, :name, :now)",
        "INSERT INTO idempotency (caller, key, fingerprint, ordinal, retry_count, batch, created_at, sender)"
        " VALUES (:owner, :name, :name, 0, 0, '', :now, '')",
        "INSERT INTO rate_limits (caller, started_at, used) VALUES (:owner, :now, 1)",
        "INSERT INTO rate_limits (caller, started_at, used) VALUES (:owner || ' key tests', :now, 1)",
        "INSERT INTO owner_usage (owner, day, images, micros) VALUES (:owner, :day, 1, 1)",
        "INSERT INTO provider_limits (provider, key_id, paused_until, errors, reason) VALUES (:account, :key, 0, 0,'')",
    ):
        used = set(re.findall(r":(\w+)", sql))
        values = {**params, "account": account, "key": provider_key}
        await database.execute(sql, **{one: value for one, value in values.items() if one in used})
    for provider, key_id in (("kie", "default"), (account, provider_key)):
        await database.execute(LEDGER, day=params["day"] - 1, owner=user.id, provider=provider, key=key_id)
    own = await broker.add_task(id=new_task_id(now), caller=user.id, provider=account, key_id=provider_key)
    attempt = Attempt(task_id=own.id, number=1, provider=account, key_id=provider_key, sent_at=now)
    await database.transact(insert_row("attempts", attempt))
    conversation = await broker.services.conversation_parts.service.create(user.id, f"{name}'s conversation")
    turn = NewTurn(
        id=new_turn_id(now), conversation_id=conversation.id, parent_id=None, parent_task=None,
        batch=content.tasks[4].batch, inputs=0, created_at=now,
    )  # fmt: skip
    counting = tables.conversations.count_turn(conversation.id, title="", most=1, now=now)
    await database.transact(counting, tables.turns.insert_turn(turn))
    await tables.turns.end_wait(turn.id)  # it follows none: the broker would end that some time later, beside the test
    marks += [
        *content.deliveries,
        conversation.id,
        file.owner,
        upload.owner,
        account,
        provider_key,
        *(one.id for one in content.tasks),
    ]
    return PlantedAccount(user=user, content=content, marks=frozenset(marks))


async def _plant_provider_key(broker: ApiBroker, owner: str, account: str) -> str:
    row = ProviderKey(
        id=new_provider_key_id(), owner=owner, provider="kie", account=account, sealed="", sealing_key="",
        last_four="0000", is_verified=True, created_at=broker.services.clock.now(),
    )  # fmt: skip
    sealed = broker.services.vault.seal_row(row, SecretStr(f"{WORD}-provider-key"))
    row = ProviderKey(**{**vars(row), "sealed": sealed.text, "sealing_key": sealed.key_id})
    await broker.services.database.transact(broker.services.tables.provider_keys.insert_key(row))
    return row.id


async def _store(broker: ApiBroker, owner: str) -> str:
    async with broker.services.blobs.new_draft(owner) as draft:
        await draft.write(png("green"))
        return (await draft.commit()).name


async def _plant_file(broker: ApiBroker, caller: str, name: str) -> UploadedFile:
    owner = new_file_owner()
    return UploadedFile(
        owner=owner, caller=caller, id=new_file_id(), name=name, blob=await _store(broker, owner),
        media_type="image/png", size=1, width=1, height=1, sha256="", metadata={WORD: WORD},
        created_at=broker.services.clock.now(),
    )  # fmt: skip


async def _plant_upload(broker: ApiBroker, caller: str, name: str) -> ResumableUpload:
    owner = new_upload_owner()
    return ResumableUpload(
        id=new_upload_id(), owner=owner, caller=caller, name=name, parts=(await _store(broker, owner),), received=1,
        created_at=broker.services.clock.now(),
    )  # fmt: skip
