"""The chat service (S0): answers, options, other image types, and failures with their hints."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from broker.sandbox.engine import Options
from storage.sql.scope import EVERYTHING
from tests.support.brokers import RunningBroker, open_broker
from tests.support.emulators import broker_before
from tests.support.samples import encoded, picture

pytestmark = pytest.mark.anyio

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
PRO = {"model": "nano-banana-pro"}


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[RunningBroker]:
    """A broker before Gemini, which writes a text beside each image and has every option."""
    async with broker_before("gemini", tmp_path, task_deadline=20) as broker:
        yield broker


async def generate(broker: RunningBroker, prompt: str, **fields: Any) -> httpx.Response:
    return await broker.client.post("/v1/generate", json={"prompt": prompt, **fields})


async def post_form(broker: RunningBroker, path: str, prompt: str, *images: bytes, **fields: str) -> httpx.Response:
    files = [("files", (f"{number}.png", image, "image/png")) for number, image in enumerate(images)]
    return await broker.client.post(path, data={"prompt": prompt, **fields}, files=files)


def decoded(answer: httpx.Response) -> list[bytes]:
    assert answer.status_code == 200, answer.text
    assert set(answer.json()) == {"images", "texts"}
    return [base64.b64decode(image, validate=True) for image in answer.json()["images"]]


# -- answers


async def test_prompt_and_images_are_answered_with_pngs_and_texts(broker: RunningBroker) -> None:
    """S0-19, S0-20, S0-22, S0-24."""
    answers = [
        await generate(broker, "a red fox", **PRO),
        await post_form(broker, "/v1/edit", "at night", encoded("PNG"), **PRO),
        await post_form(broker, "/v1/compose", "both", encoded("PNG"), encoded("JPEG"), **PRO),
    ]
    for answer in answers:
        (image,) = decoded(answer)
        assert image.startswith(PNG_MAGIC)
        assert answer.json()["texts"] == ["Here is your image."]
        task = await broker.get_task(answer.headers["x-request-id"])
        assert (await broker.client.get(task["result"])).content == image
        assert answer.headers["x-should-retry"] == "false"
    assert len(await broker.provider_jobs()) == 3
    at_once = await broker.client.post(
        "/v1/generate", json={"prompt": "later", "candidate_count": 2}, headers={"Prefer": "respond-async"}
    )
    assert (at_once.status_code, len(at_once.json()["task_ids"])) == (202, 2)


async def test_candidate_count_is_limited(broker: RunningBroker) -> None:
    """S0-21."""
    for count, made in ((0, 1), (-4, 1), (2, 2), (99, 6)):
        answer = await generate(broker, "a red fox", candidate_count=count)
        assert (len(decoded(answer)), len(answer.json()["texts"])) == (made, made)
    assert len(decoded(await post_form(broker, "/v1/edit", "a fox", encoded("PNG"), candidate_count="2"))) == 2


async def test_options_are_checked_and_those_without_effect_are_named(broker: RunningBroker) -> None:
    unset = dict.fromkeys(("temperature", "top_p", "top_k", "candidate_count", "seed", "max_output_tokens"))
    answer = await generate(broker, "a red fox", conv_id="", mystery="x", model="", **unset)
    decoded(answer)
    assert answer.headers["x-ignored"] == "mystery"
    wrong: list[dict[str, Any]] = [
        *({"temperature": 2.1}, {"top_p": -0.1}, {"top_k": 0}, {"max_output_tokens": 1.5}, {"seed": "x"}),
        *({"model": "sora"}, {"prompt": ""}, {"prompt": None}),
    ]
    for fields in wrong:
        refused = await generate(broker, **{"prompt": "a fox", **fields})
        assert (refused.status_code, list(refused.json())) == (400, ["detail"]), fields
    assert len(await broker.provider_jobs()) == 1


async def test_options_reach_a_provider_that_has_them_and_may_be_written_out(broker: RunningBroker) -> None:
    sent = {"temperature": 0.5, "topP": 0.9, "topK": 40, "maxOutputTokens": 2048, "seed": -5}
    options = {"temperature": "0.5", "top_p": "0.9", "top_k": "40", "max_output_tokens": "2048", "seed": "-5"}
    answers = [
        await generate(broker, "a red fox", **options),
        await post_form(broker, "/v1/edit", "a blue fox", encoded("PNG"), model="", **options),
    ]
    for answer in answers:
        decoded(answer)
        task = await broker.services.queries.get(answer.headers["x-request-id"], EVERYTHING)
        assert dict(task.params) == sent
    for job in await broker.provider_jobs():
        assert sent.items() <= job["request"]["config"].items()


async def test_options_that_the_provider_does_not_have_are_named(tmp_path: Path) -> None:
    async with open_broker(tmp_path) as broker:
        answer = await generate(broker, "a red fox", temperature=1, top_p=0.5, top_k=3, max_output_tokens=9, seed=4)
    decoded(answer)
    assert answer.headers["x-ignored"] == "seed, temperature, top_p, top_k, max_output_tokens"


async def test_form_without_enough_images_is_refused_before_it_costs(broker: RunningBroker) -> None:
    cases = [
        (await post_form(broker, "/v1/edit", "a fox"), 400, "urlencoded"),
        (await broker.client.post("/v1/edit", files={"prompt": (None, "a fox")}), 400, "at least one image"),
        (await broker.client.post("/v1/edit", files={"prompt": (None, "x"), "files": (None, "x")}), 400, "file name"),
        (await post_form(broker, "/v1/compose", "a fox", encoded("PNG")), 400, "at least 2 images"),
        (await post_form(broker, "/v1/compose", "a fox", encoded("PNG"), b"no image"), 400, "image"),
        (await post_form(broker, "/v1/edit", "a fox", *[encoded("PNG")] * 40), 400, "images are too many"),
    ]
    for answer, status, words in cases:
        assert answer.status_code == status, answer.text
        assert words in answer.json()["detail"] or words == "urlencoded"
    assert await broker.provider_jobs() == []


# -- other types


async def test_other_types_become_png(broker: RunningBroker) -> None:
    """S0-20: base64 PNG, although the provider sent a JPEG. The copy is deleted with the image."""
    first, again = [await generate(broker, "a red fox [mood:wrongtype]", **PRO) for _ in range(2)]
    (image,) = decoded(first)
    task_id = first.headers["x-request-id"]
    (result,) = (await broker.get_task(task_id))["results"]
    assert result["mediaType"] == "image/jpeg"
    stored = (await broker.client.get(result["url"])).content
    with Image.open(io.BytesIO(image)) as made, Image.open(io.BytesIO(stored)) as original:
        assert (made.format, made.size) == ("PNG", original.size)
        assert made.tobytes() == original.tobytes()
    assert decoded(again)[0].startswith(PNG_MAGIC)
    assert await broker.services.blobs.delete(task_id) == 2


# -- failures


async def test_no_image_is_502_with_a_hint_in_the_language_of_the_client(broker: RunningBroker) -> None:
    """S0-28."""
    prompt = "a red fox [mood:noresult]"
    answer = await generate(broker, prompt, **PRO)
    assert (answer.status_code, list(answer.json())) == (502, ["detail"]), answer.text
    assert "Change the prompt or the parameters" in answer.json()["detail"]
    assert answer.headers["x-should-retry"] == "false"
    chinese = await broker.client.post(
        "/v1/generate", json={"prompt": prompt, **PRO}, headers={"Accept-Language": "zh"}
    )
    assert "请修改提示词或参数" in chinese.json()["detail"]
    flagged = await generate(broker, "a red fox [mood:flagged]", **PRO)
    assert (flagged.status_code, list(flagged.json())) == (400, ["detail"]), flagged.text


async def test_refused_provider_key_names_the_variables(tmp_path: Path) -> None:
    """S0-27."""
    options = Options(api_key="another", duration=0.05, callback_spacing=0.05)
    async with open_broker(tmp_path, options=options, task_deadline=1) as broker:
        answer = await generate(broker, "a red fox")
    assert answer.status_code == 424, answer.text
    assert all(name in answer.json()["detail"] for name in ("GOOGLE_API_KEY", "GEMINI_API_KEY"))


async def test_repeated_form_after_a_cut_off_answer_is_one_order(tmp_path: Path) -> None:
    options = Options(duration=0.3, callback_spacing=0.05, creates_per_window=1000)
    async with open_broker(tmp_path, options=options, task_deadline=20) as broker:
        with pytest.raises(httpx.ReadTimeout):
            await broker.client.post(
                "/v1/edit",
                data={"prompt": "a fox"},
                files={"files": ("a.png", encoded("PNG", picture()), "image/png")},
                timeout=0.2,
            )
        assert len(decoded(await post_form(broker, "/v1/edit", "a fox", encoded("PNG", picture())))) == 1
        assert len(await broker.provider_jobs()) == 1
