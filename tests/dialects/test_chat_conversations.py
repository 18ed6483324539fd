"""Conversations of the chat service (S0-14 … S0-23, N22) before the emulators of providers, over real HTTP."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker.conversations.titles import MAX_TITLE_CHARACTERS
from broker.sandbox.dialects.gemini.models import signature_of
from broker.sandbox.engine import Options
from broker.sandbox.server import serve_sandbox
from tests.support.brokers import RunningBroker, open_broker
from tests.support.emulators import PROVIDERS, broker_before
from tests.support.samples import encoded, picture

pytestmark = pytest.mark.anyio

PRO = "nano-banana-pro"


async def begin(broker: RunningBroker, title: str | None = None) -> str:
    answer = await broker.client.post("/conversations", json=None if title is None else {"title": title})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


async def say(broker: RunningBroker, conversation: str, prompt: str, **fields: Any) -> httpx.Response:
    headers = fields.pop("headers", None)
    body = {"prompt": prompt, "conv_id": conversation, "model": PRO, **fields}
    return await broker.client.post("/v1/generate", json=body, headers=headers)


async def edit(broker: RunningBroker, conversation: str, prompt: str, *images: bytes) -> httpx.Response:
    files = [("files", (f"{number}.png", image, "image/png")) for number, image in enumerate(images)]
    fields = {"prompt": prompt, "conv_id": conversation, "model": PRO}
    return await broker.client.post("/v1/edit", data=fields, files=files)


def image_of(answer: httpx.Response) -> bytes:
    assert answer.status_code == 200, answer.text
    return base64.b64decode(answer.json()["images"][0], validate=True)


async def read(broker: RunningBroker, conversation: str, **query: Any) -> list[dict[str, Any]]:
    answer = await broker.client.get(f"/conversations/{conversation}/messages", params=query)
    assert answer.status_code == 200, answer.text
    messages: list[dict[str, Any]] = answer.json()
    return messages


async def shown_to(broker: RunningBroker, job: dict[str, Any]) -> list[bytes]:
    """Return the images that an order at kie.ai showed it, as they are in its own store."""
    async with httpx.AsyncClient(verify=False) as client:
        return [(await client.get(url)).content for url in job["request"]["input"]["image_input"]]


def sha256(image: bytes) -> str:
    return hashlib.sha256(image).hexdigest()


async def test_each_turn_shows_a_one_shot_provider_the_last_image(tmp_path: Path) -> None:
    """The whole flow of a page: begin, generate, edit, read, rename, delete. Without a public URL, images are sent."""
    async with broker_before("kie", tmp_path, with_callbacks=False) as broker:
        conversation = await begin(broker)
        fox = image_of(await say(broker, conversation, "a red  fox\nin a wood"))
        hat = encoded("PNG", picture())
        with_hat = image_of(await edit(broker, conversation, "with this hat", hat))
        snow = image_of(await say(broker, conversation, "in snow"))
        first, second, third = await broker.provider_jobs()
        assert [job["prompt"] for job in (first, second, third)] == [
            "a red  fox\nin a wood",
            "with this hat",
            "in snow",
        ]
        assert await shown_to(broker, first) == []
        assert await shown_to(broker, second) == [fox, hat]
        assert await shown_to(broker, third) == [with_hat]
        messages = await read(broker, conversation)
        assert [message["role"] for message in messages] == ["user", "assistant"] * 3
        assert [message["content"] for message in messages[::2]] == [
            "a red  fox\nin a wood",
            "with this hat",
            "in snow",
        ]
        shown = [[base64.b64decode(image) for image in message["images"]] for message in messages]
        assert shown == [[], [fox], [hat], [with_hat], [], [snow]]
        assert {message["status"] for message in messages} == {"completed"}
        with_urls = await read(broker, conversation, images="url")
        assert [message["images"] for message in with_urls] == [message["image_urls"] for message in messages]
        addresses = [address for message in messages for address in message["image_urls"]]
        assert [(await broker.client.get(address)).content for address in addresses] == [fox, hat, with_hat, snow]

        (listed,) = (await broker.client.get("/conversations")).json()
        assert (listed["title"], listed["turns"], listed["id"]) == ("a red fox in a wood", 3, conversation)
        named = await broker.client.patch(f"/conversations/{conversation}", json={"title": " Foxes ", "pinned": True})
        assert (named.json()["title"], named.json()["pinned"]) == ("Foxes", True)
        for title in ("", "x" * (MAX_TITLE_CHARACTERS + 1)):
            refused = await broker.client.patch(f"/conversations/{conversation}", json={"title": title})
            assert (refused.status_code, list(refused.json())) == (400, ["detail"])

        deleted = await broker.client.delete(f"/conversations/{conversation}")
        assert (deleted.status_code, deleted.json()) == (200, {"ok": True})
        assert {(await broker.client.get(address)).status_code for address in addresses} == {404}
        tasks = {(await broker.client.get(f"/api/task/{one}")).status_code for one in messages[1]["task_ids"]}
        assert tasks == {410}
        gone = [
            await broker.client.get(f"/conversations/{conversation}/messages"),
            await broker.client.delete(f"/conversations/{conversation}"),
            await say(broker, conversation, "again"),
            await say(broker, "conv_" + "0" * 43, "a fox"),
            await say(broker, "7", "a fox"),
        ]
        assert {answer.status_code for answer in gone} == {404}
        assert (await broker.client.get("/conversations")).json() == []
        assert len(await broker.provider_jobs()) == 3
        untitled = await broker.client.get("/conversations", headers={"Accept-Language": "ru"})
        assert untitled.json() == []


async def test_gemini_gets_the_branch_in_its_own_words_and_no_failed_turn(tmp_path: Path) -> None:
    """The emulator refuses an image of its own whose signature is not the one that it gave."""
    async with broker_before("gemini", tmp_path, task_deadline=20) as broker:
        conversation = await begin(broker, "Foxes")
        fox = image_of(await say(broker, conversation, "a red fox"))
        hat = encoded("PNG", picture())
        with_hat = image_of(await edit(broker, conversation, "with this hat", hat))
        failed = await say(broker, conversation, "in snow [mood:noresult]")
        assert failed.status_code == 502
        last = image_of(await say(broker, conversation, "in rain"))
        drawn = [{"role": "user", "parts": [{"text": "a red fox"}]}, model_turn(fox)]
        dressed = [{"role": "user", "parts": [{"text": "with this hat"}, {"image": sha256(hat)}]}, model_turn(with_hat)]
        assert await contents(broker, -1) == [*drawn, *dressed, {"role": "user", "parts": [{"text": "in rain"}]}]

        messages = await read(broker, conversation, images="url")
        assert [one["status"] for one in messages[1::2]] == ["completed", "completed", "failed", "completed"]
        assert (messages[5]["error"], messages[5]["images"]) == ("no_image", [])
        assert "without an image" in messages[5]["content"].lower(), messages[5]
        assert [one["parent_id"] for one in messages[2::2]] == [one["turn_id"] for one in messages[:-2:2]]

        branch = image_of(await say(broker, conversation, "in a tree", parent_id=messages[1]["id"]))
        assert await contents(broker, -1) == [*drawn, {"role": "user", "parts": [{"text": "in a tree"}]}]
        image_of(await say(broker, conversation, "at night"))
        climbed = [{"role": "user", "parts": [{"text": "in a tree"}]}, model_turn(branch)]
        assert await contents(broker, -1) == [*drawn, *climbed, {"role": "user", "parts": [{"text": "at night"}]}]

        (two,) = [await say(broker, conversation, "two of them", candidate_count=2)]
        chosen, newest = [base64.b64decode(image) for image in two.json()["images"]]
        tasks = (await read(broker, conversation, limit=1, images="url"))[1]["task_ids"]
        image_of(await say(broker, conversation, "the first one", parent_id=tasks[0]))
        assert (await contents(broker, -1))[-2] == model_turn(chosen)
        parent = (await read(broker, conversation, limit=2, images="url"))[1]["turn_id"]
        image_of(await say(broker, conversation, "the last one", parent_id=parent))
        assert (await contents(broker, -1))[-2] == model_turn(newest)

        other = await begin(broker)
        for parent_id in (messages[1]["id"], tasks[0], "turn_" + "0" * 43, "x"):
            assert (await say(broker, other, "a fox", parent_id=parent_id)).status_code == 404
        without = await broker.client.post("/v1/generate", json={"prompt": "a fox", "model": PRO, "parent_id": "x"})
        assert (without.status_code, without.headers["x-ignored"]) == (200, "parent_id")
        row = await broker.services.tables.tasks.get((await read(broker, conversation, limit=1))[1]["task_ids"][0])
        assert row is not None
        assert signature_of(last)[:40] not in json.dumps([*row.turns]), "what a model wrote is stored once"


def model_turn(image: bytes) -> dict[str, Any]:
    parts = [{"text": "Here is your image."}, {"thoughtSignature": signature_of(image), "image": sha256(image)}]
    return {"role": "model", "parts": parts}


async def contents(broker: RunningBroker, job: int) -> list[dict[str, Any]]:
    """Return what Gemini was sent, with the hash of each image."""
    found: list[dict[str, Any]] = (await broker.provider_jobs())[job]["request"]["contents"]
    return found


async def test_conversation_goes_on_at_another_provider_and_comes_back(tmp_path: Path) -> None:
    """Each provider gets the same stored turns in its own way; a signature only its own model's."""
    options = Options(dialect="gemini", api_key="key", duration=0.05, creates_per_window=1000)
    async with (
        serve_sandbox(options=options) as gemini,
        open_broker(
            tmp_path,
            with_callbacks=False,
            providers=("gemini", "kie"),
            task_deadline=20,
            **PROVIDERS["gemini"](gemini),
        ) as broker,
    ):
        conversation = await begin(broker)
        first = image_of(await say(broker, conversation, "a red fox"))
        assert (await broker.client.post("/api/providers/gemini/pause")).status_code == 200
        second = image_of(await say(broker, conversation, "in snow"))
        (job,) = await broker.provider_jobs()
        assert job["prompt"] == "in snow"
        assert await shown_to(broker, job) == [first]
        assert signature_of(first)[:40] not in json.dumps(job)
        assert (await broker.client.post("/api/providers/gemini/resume")).status_code == 200
        image_of(await say(broker, conversation, "at night"))
        async with httpx.AsyncClient(verify=False) as client:
            jobs = (await client.get(f"{gemini}/sandbox/jobs")).json()["jobs"]
    assert jobs[-1]["request"]["contents"] == [
        {"role": "user", "parts": [{"text": "a red fox"}]},
        model_turn(first),
        {"role": "user", "parts": [{"text": "in snow"}]},
        {"role": "user", "parts": [{"image": sha256(second)}, {"text": "at night"}]},
    ]


async def test_turns_sent_together_are_made_one_after_the_other_and_joined_by_retries(tmp_path: Path) -> None:
    options = Options(duration=0.15, callback_spacing=0.05, creates_per_window=1000)
    async with serve_sandbox(options=options) as url, open_broker(tmp_path, sandbox=url, task_deadline=20) as broker:
        conversation = await begin(broker)
        words = [f"turn {number}" for number in range(3)]
        answers = await asyncio.gather(*(say(broker, conversation, one) for one in words))
        made = {words[number]: image_of(answer) for number, answer in enumerate(answers)}
        messages = await read(broker, conversation)
        order = [message["content"] for message in messages[::2]]
        assert sorted(order) == words
        jobs = {job["prompt"]: job for job in await broker.provider_jobs()}
        shown = [await shown_to(broker, jobs[one]) for one in order]
        assert shown == [[], *([made[one]] for one in order[:-1])]

        keyed = {"headers": {"Idempotency-Key": "the-same"}}
        again = [image_of(await say(broker, conversation, "with a key", **keyed)) for _ in range(2)]
        assert again[0] == again[1]
        elsewhere = await say(broker, await begin(broker), "with a key", **keyed)
        assert elsewhere.status_code == 422, "another conversation is another request"
        with pytest.raises(httpx.ReadTimeout):  # the client gives up, and sends the same again
            await broker.client.post("/v1/generate", json=cut_off(conversation), timeout=0.1)
        image_of(await broker.client.post("/v1/generate", json=cut_off(conversation)))
        assert len(await read(broker, conversation)) == 2 * 5
        assert len(await broker.provider_jobs()) == 5
        image_of(await broker.client.post("/v1/generate", json=cut_off(conversation)))
        assert len(await read(broker, conversation)) == 2 * 6, "an answer that was sent is not joined"

        waiting = [
            await say(broker, conversation, f"later {number}", headers={"Prefer": "respond-async"})
            for number in range(3)
        ]
        assert [answer.status_code for answer in waiting] == [202] * 3
        statuses = [one["status"] for one in (await read(broker, conversation, images="url"))[-5::2]]
        assert statuses[1:] == ["pending", "pending"], "they wait for the one before"
        assert (await broker.client.delete(f"/conversations/{conversation}")).status_code == 200
        tasks = [answer.json()["task_id"] for answer in waiting]
        assert {(await broker.client.get(f"/api/task/{task}")).status_code for task in tasks} == {410}
        prompts = [job["prompt"] for job in await broker.provider_jobs()]
        assert {"later 1", "later 2"}.isdisjoint(prompts), "a canceled turn costs nothing"


def cut_off(conversation: str) -> dict[str, Any]:
    return {"prompt": "cut off", "conv_id": conversation, "model": PRO}
