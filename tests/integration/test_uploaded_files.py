"""Uploaded files: what is taken in, who sees it, uploads in several requests, and retention; on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from broker.errors import ApiError
from broker.ordering.files import FileDetails
from broker.services import Services
from storage.files.resumable_uploads import ResumableUpload
from storage.files.uploaded_files import UploadedFile
from storage.sql.database import Database
from tests.contracts.databases import DATABASES
from tests.support.brokers import still
from tests.support.clock import ManualClock
from tests.support.samples import encoded, picture

pytestmark = pytest.mark.anyio

PICTURE = encoded("PNG")
HOUR = 3600.0


async def pieces(data: bytes, size: int = 700) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


@pytest.fixture(params=DATABASES)
async def services(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> AsyncIterator[Services]:
    @asynccontextmanager
    async def open_database(_: Any) -> AsyncIterator[Database]:
        async with await DATABASES[request.param](request, tmp_path) as opened:
            yield opened

    async with still(tmp_path, clock, open_database=open_database, max_file_size=200_000) as opened:
        yield opened


async def store(services: Services, caller: str = "me", data: bytes = PICTURE, **details: Any) -> UploadedFile:
    return await services.files.store(caller, pieces(data), FileDetails(**details))


async def begin(services: Services, **details: Any) -> ResumableUpload:
    return await services.files.begin_upload("me", FileDetails(**details), len(PICTURE))


async def error_of(work: Any) -> str:
    with pytest.raises(ApiError) as raised:
        await work
    return raised.value.code


async def test_file_belongs_to_its_caller_until_it_is_deleted(services: Services) -> None:
    files = services.files
    file = await store(services, name="a \x00fox.png", metadata={"key": "\x00ä"})
    assert await files.get("me", file.id) == file
    assert (file.media_type, file.size, file.name) == ("image/png", len(PICTURE), "a fox.png")
    assert b"".join([chunk async for chunk in await files.open(file)]) == PICTURE
    assert await files.list_newest("me", before=None, limit=5) == [file]
    assert await files.list_newest("other", before=None, limit=5) == []
    assert await error_of(files.get("other", file.id)) == "not_found"
    assert await error_of(files.delete("other", file.id)) == "not_found"
    await files.delete("me", file.id)
    assert await error_of(files.get("me", file.id)) == "not_found"
    assert await error_of(files.delete("me", file.id)) == "not_found"
    assert await error_of(files.open(file)) == "not_found"


async def test_files_are_listed_page_by_page_newest_first(services: Services, clock: ManualClock) -> None:
    stored = []
    for number in range(5):
        stored.append(await store(services, name=str(number)))
        clock.advance(0.0 if number == 2 else 1.0)  # two of the same moment
    names, before = list[str](), None
    while page := await services.files.list_newest("me", before=before, limit=2):
        names += [file.name for file in page]
        before = page[-1].created_at, page[-1].id
    assert sorted(names) == ["0", "1", "2", "3", "4"]
    assert (names[0], names[3:]) == ("4", ["1", "0"])


async def test_what_is_no_usable_image_is_refused_and_leaves_nothing(services: Services) -> None:
    assert await error_of(store(services, data=b"GIF89a" + bytes(500))) == "invalid_image"
    assert await error_of(store(services, data=PICTURE[:-20])) == "invalid_image"
    assert await error_of(store(services, data=encoded("PNG", picture(400, 300)))) == "payload_too_large"
    assert await error_of(store(services, chosen_id="Not a name")) == "invalid_request"
    assert await error_of(store(services, metadata={str(n): n for n in range(101)})) == "invalid_request"
    assert await services.blobs.list_owners(-60.0) == []


async def test_chosen_name_is_unique_for_its_caller(services: Services) -> None:
    file = await store(services, chosen_id="my-fox")
    assert file.id == "my-fox"
    assert (await store(services, "other", chosen_id="my-fox")).id == "my-fox"
    assert await error_of(store(services, chosen_id="my-fox")) == "conflict"
    assert len(await services.blobs.list_owners(-60.0)) == 2, "the refused one is deleted"


async def test_upload_in_parts_becomes_one_file(services: Services) -> None:
    files, upload = services.files, await begin(services, name="fox.png")
    upload = await files.append_part(upload, 0, pieces(PICTURE[:300]))
    again = await files.append_part(upload, 0, pieces(PICTURE[:300]))
    assert (upload.received, again) == (300, upload), "a part that arrives twice is one"
    assert await error_of(files.append_part(upload, 0, pieces(PICTURE[1:301]))) == "invalid_request"
    assert await error_of(files.append_part(upload, 299, pieces(b"x"))) == "invalid_request"
    upload = await files.append_part(upload, 300, pieces(PICTURE[300:900]))
    assert await error_of(files.finish_upload(upload, 300, pieces(PICTURE[300:]))) == "invalid_request"
    file = await files.finish_upload(upload, 900, pieces(PICTURE[900:]))
    assert b"".join([chunk async for chunk in await files.open(file)]) == PICTURE
    finished = await files.get_upload(upload.id)
    assert await files.finish_upload(finished, 900, pieces(PICTURE[900:])) == file, "a lost answer is given again"
    assert await error_of(files.append_part(finished, 900, pieces(b"x"))) == "conflict"
    assert await services.blobs.list_owners(-60.0) == [file.owner], "the parts are deleted"


async def test_upload_goes_on_in_another_process(tmp_path: Path, clock: ManualClock) -> None:
    async with still(tmp_path, clock) as one:
        upload = await one.files.append_part(await begin(one, name="fox.png"), 0, pieces(PICTURE[:300]))
    async with still(tmp_path, clock) as another:
        continued = await another.files.get_upload(upload.id)
        file = await another.files.finish_upload(continued, 300, pieces(PICTURE[300:]))
        assert (file.name, file.size, await another.files.get("me", file.id)) == ("fox.png", len(PICTURE), file)


async def test_upload_finished_twice_at_once_is_one_file(services: Services) -> None:
    upload = await begin(services)
    made = await asyncio.gather(*(services.files.finish_upload(upload, 0, pieces(PICTURE)) for _ in range(3)))
    assert len({file.id for file in made}) == 1
    assert await services.blobs.list_owners(-60.0) == [made[0].owner]


async def test_upload_that_is_refused_or_canceled_leaves_nothing(services: Services) -> None:
    files = services.files
    assert await error_of(files.begin_upload("me", FileDetails(), 200_001)) == "payload_too_large"
    upload = await begin(services)
    assert await error_of(files.append_part(upload, 0, pieces(bytes(200_001)))) == "payload_too_large"
    upload = await files.append_part(upload, 0, pieces(b"no image"))
    assert await error_of(files.finish_upload(upload, 8, pieces(b"at all"))) == "invalid_image"
    assert await error_of(files.get_upload(upload.id)) == "not_found"
    upload = await files.append_part(await begin(services), 0, pieces(PICTURE[:300]))
    await files.cancel_upload(upload)
    assert await error_of(files.get_upload(upload.id)) == "not_found"
    assert await services.blobs.list_owners(-60.0) == []


async def test_retention_deletes_files_and_uploads_and_the_sweep_keeps_them_until_then(
    services: Services, clock: ManualClock
) -> None:
    retention, blobs = services.worker.retention, services.blobs
    old = await store(services, name="old")
    upload = await services.files.append_part(await begin(services), 0, pieces(PICTURE[:300]))
    async with blobs.new_draft("file_" + "0" * 32) as draft:  # of a process that died before it wrote the row
        await draft.write(b"bytes")
        await draft.commit()
    owners = await blobs.list_owners(-60.0)
    assert await retention.find_strays(owners) == ["file_" + "0" * 32]
    assert await retention.sweep(older_than=-60.0) == 1
    clock.advance(services.settings.retention_hours * HOUR - 1)
    young = await store(services, name="young")
    await retention.delete_leftovers()
    assert await services.files.get("me", old.id) == old
    clock.advance(2)
    assert await error_of(services.files.get("me", old.id)) == "not_found", "expired, though not deleted yet"
    assert await error_of(services.files.get_upload(upload.id)) == "not_found"
    assert await services.files.list_newest("me", before=None, limit=5) == [young]
    await retention.delete_leftovers()
    assert await blobs.list_owners(-60.0) == [young.owner]
    for table in ("uploaded_files", "resumable_uploads"):
        rows = await services.database.fetch(f"SELECT * FROM {table}")
        assert len(rows) == (table == "uploaded_files")
