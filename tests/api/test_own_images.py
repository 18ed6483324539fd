"""Our own addresses as references: found without a request, in each spelling, and refused clearly when gone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from broker.ordering.files import FileDetails
from storage.images import StoredImage
from tests.support.api import ApiBroker, open_api, png

pytestmark = pytest.mark.anyio

CREATE = "/api/generate/image"
HOST = "127.0.0.1:8000"
PUBLIC = "https://images.example.com/broker"


async def _bytes(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def a_result(broker: ApiBroker) -> StoredImage:
    task = await broker.add_task()
    return await broker.add_image(task.id, png())


async def a_file(broker: ApiBroker, caller: str = "house:local") -> str:
    return (await broker.services.files.store(caller, _bytes(png()), FileDetails())).id


async def references_of(broker: ApiBroker, answer: Any) -> list[str]:
    """Return the hashes of the references of an order."""
    assert answer.status_code == 202, answer.text
    task = await broker.services.tables.tasks.get(answer.json()["taskId"])
    assert task is not None
    assert task.mode == "image-to-image"
    return [reference["sha256"] for reference in task.references]


async def test_every_spelling_of_our_addresses_is_the_image_itself(tmp_path: Path) -> None:
    """Nothing listens at any of these hosts, and a fetch of a private one would be refused."""
    async with open_api(tmp_path, webhook_base_url=PUBLIC) as broker:
        image, file = await a_result(broker), await a_file(broker)
        paths = [f"/uploads/images/{image.name}", *(f"/{base}/files/{file}" for base in ("v1beta", "v1", "fal"))]
        urls = [base + path for path in paths for base in ("", f"http://{HOST}", PUBLIC)]
        urls += [f"https://{HOST}{paths[0]}", f"{paths[0]}?size=256", f"/fal/files/{file}/fox.png"]
        for start in range(0, len(urls), 5):
            chosen = urls[start : start + 5]
            answer = await broker.client.post(CREATE, json={"prompt": "x", "imageUrls": chosen})
            assert await references_of(broker, answer) == [image.sha256] * len(chosen), chosen
        task = await broker.services.tables.tasks.get(answer.json()["taskId"])
        assert task is not None
        first = task.references[0]["name"]
        again = {"prompt": "x", "images": [f"/uploads/references/{first}", f"/uploads/images/{image.name}"]}
        answer = await broker.client.post(CREATE, json=again)
        assert await references_of(broker, answer) == [image.sha256] * 2
        form = {"prompt": (None, "x"), "image": (None, f"/uploads/images/{image.name}")}
        assert await references_of(broker, await broker.client.post(CREATE, files=form)) == [image.sha256]
        dry = await broker.client.post(CREATE, json={**again, "dryRun": True})
        assert dry.status_code == 200, dry.text


async def test_addresses_of_others_are_not_ours(tmp_path: Path) -> None:
    async with open_api(tmp_path, webhook_base_url=PUBLIC) as broker:
        image = await a_result(broker)
        path = f"/uploads/images/{image.name}"
        others = [f"http://127.0.0.1:8001{path}", f"http://localhost{path}", f"//{HOST}{path}", f"/other{path}"]
        for url in [*others, f"https://images.example.com{path}", "/uploads/images/../secret", "/api/models"]:
            for more in ({}, {"dryRun": True}):
                answer = await broker.client.post(CREATE, json={"prompt": "x", "imageUrls": [url], **more})
                if more and url.startswith("https://images"):
                    continue  # addresses of others are not downloaded in a dry run
                assert (answer.status_code, answer.json()["code"]) == (400, "invalid_image"), url


async def test_image_that_is_gone_is_refused_with_a_cure(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        image, file, foreign = await a_result(broker), await a_file(broker), await a_file(broker, "somebody else")
        without_bytes = await broker.add_image("task_" + "d" * 43, png(), position=1)
        await broker.services.blobs.delete(without_bytes.owner)
        await broker.services.files.delete("house:local", file)
        gone = [f"/v1/files/{file}", f"/v1/files/{foreign}", f"/uploads/references/{image.name}"]
        for url in [*gone, f"/uploads/images/{without_bytes.name}", "/uploads/images/generated_0.png"]:
            for more in ({}, {"dryRun": True}):
                answer = await broker.client.post(CREATE, json={"prompt": "x", "imageUrls": [url], **more})
                assert (answer.status_code, answer.json()["code"]) == (400, "invalid_image"), answer.text
                assert "may have expired" in answer.json()["error"], answer.text
                assert url in answer.json()["error"]
        assert (await broker.stored_counts())[0] == 1, "nothing was ordered"


async def test_repeated_order_is_joined_after_its_file_is_deleted(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        file = await a_file(broker)
        order = {"prompt": "x", "imageUrls": [f"http://{HOST}/v1/files/{file}"]}
        headers = {"Idempotency-Key": "order-1"}
        first = await broker.client.post(CREATE, json=order, headers=headers)
        await broker.services.files.delete("house:local", file)
        again = await broker.client.post(CREATE, json=order, headers=headers)
        assert (first.status_code, again.text) == (202, first.text)
        other = {**order, "imageUrls": [f"/v1/files/{await a_file(broker)}"]}
        mismatch = await broker.client.post(CREATE, json=other, headers=headers)
        assert mismatch.json()["code"] == "idempotency_mismatch"
