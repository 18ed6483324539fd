"""The image routes of the OpenAI dialect, by the openai SDK and by plain requests."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from broker.api.dialects.openai.sizes import choose_shape
from broker.catalog import Catalog
from tests.dialects.matrix import base_url
from tests.dialects.openai_sdk import broker_in, call, inputs_of, picture, sdk_for, size_of
from tests.support.process import until

pytestmark = pytest.mark.anyio

# -- images


async def test_generations_by_the_sdk(tmp_path: Path) -> None:
    async with broker_in(tmp_path) as broker:

        def generate(client: OpenAI) -> None:
            raw = client.images.with_raw_response.generate(
                model="nano-banana-pro",
                prompt="a red fox",
                size="1792x1024",
                quality="high",
                background="transparent",
                moderation="low",
                output_format="jpeg",
            )
            made = raw.parse()
            assert made.data is not None
            assert size_of(made.data[0].b64_json) == (1376, 768)
            assert (made.size, made.output_format, made.quality) == ("1376x768", "jpeg", "high")
            assert made.usage is not None
            assert made.usage.output_tokens == 1120
            assert raw.headers["x-delivered-size"] == "1376x768"
            assert raw.headers["x-ignored"] == "quality, background, moderation"
            several = client.images.generate(model="dall-e-3", prompt="two foxes", n=2, response_format="b64_json")
            assert several.data is not None
            assert [size_of(one.b64_json) for one in several.data] == [(1024, 1024)] * 2
            linked = client.images.generate(model="dall-e-3", prompt="a linked fox")
            assert linked.data is not None
            assert httpx.get(linked.data[0].url or "").headers["content-type"] == "image/png"

        await call(sdk_for(broker), generate)
        first, *others = await inputs_of(broker)
        assert (first["aspect_ratio"], first["resolution"], first["output_format"]) == ("16:9", "1K", "jpg")
        assert len(others) == 3


async def test_edits_by_the_asynchronous_sdk(tmp_path: Path) -> None:
    async with (
        broker_in(tmp_path) as broker,
        AsyncOpenAI(base_url=f"{base_url(broker)}/v1", api_key="any", max_retries=0) as client,
    ):
        one = await client.images.edit(image=picture(), prompt="in blue", n=2, size="auto")
        files = [("a.png", picture("red")), ("b.png", picture("blue"))]
        several = await client.images.edit(model="gpt-image-2", image=files, prompt="both")
        assert one.data is not None
        assert several.data is not None
        assert [size_of(image.b64_json) for image in (*one.data, *several.data)] == [(1024, 1024)] * 3
        data_uri = f"data:image/png;base64,{base64.b64encode(picture()).decode()}"
        for images in ({"images": [{"image_url": data_uri}]}, {"image": data_uri}):
            answer = await broker.client.post("/v1/images/edits", json={"prompt": "by JSON", **images})
            assert answer.status_code == 200, answer.text
        assert [len(one["image_urls"]) for one in await inputs_of(broker)] == [1, 1, 2, 1, 1]

        overlays: list[dict[str, Any]] = [{"mask": picture()}, {"markup": picture()}]
        for overlay in overlays:
            with pytest.raises(openai.BadRequestError) as refused:
                await client.images.edit(image=picture(), prompt="masked", **overlay)
            assert (refused.value.code, refused.value.param) == ("unsupported_parameter", next(iter(overlay)))
        with pytest.raises(openai.BadRequestError) as refused:
            await client.images.edit(image=[picture()] * 11, prompt="too many")
        assert (refused.value.code, refused.value.param) == ("too_many_images", "image")
        missing = await broker.client.post("/v1/images/edits", json={"prompt": "no image"})
        assert (missing.status_code, missing.json()["error"]["param"]) == (400, "image")
        assert len(await broker.provider_jobs()) == 5, "what is refused is not ordered"


async def test_streams_end_with_one_completed_event_or_an_error(tmp_path: Path) -> None:
    async with broker_in(tmp_path) as broker:

        def stream(client: OpenAI) -> None:
            (made,) = client.images.generate(prompt="a red fox", stream=True, partial_images=2)
            assert made.type == "image_generation.completed"
            assert (size_of(made.b64_json), made.size, made.output_format) == ((1024, 1024), "1024x1024", "png")
            assert made.usage.output_tokens == 1290
            edited, other = client.images.edit(image=picture(), prompt="in blue", stream=True, n=2)
            assert {edited.type, other.type} == {"image_edit.completed"}
            with pytest.raises(openai.APIError, match="safety") as failed:
                list(client.images.generate(prompt="a fox [mood:flagged]", stream=True))
            assert failed.value.code == "safety_input"

        await call(sdk_for(broker), stream)


async def test_errors_are_exceptions_of_the_sdk_and_never_a_second_order(tmp_path: Path) -> None:
    async with broker_in(tmp_path) as broker:

        def fail(client: OpenAI) -> None:
            refused: list[tuple[dict[str, Any], str, str]] = [
                ({"size": "huge"}, "unsupported_parameter", "size"),
                ({"size": "0x10"}, "unsupported_parameter", "size"),
                ({"model": "nano-bananas"}, "unsupported_parameter", "model"),
                ({"output_format": "webp"}, "unsupported_parameter", "output_format"),
                ({"n": 11}, "invalid_request", "n"),
                ({"prompt": ""}, "invalid_prompt", "prompt"),
                ({"extra_body": {"callback_url": "http://127.0.0.1/"}}, "invalid_request", "callback_url"),
            ]
            for fields, code, param in refused:
                with pytest.raises(openai.BadRequestError) as error:
                    client.images.generate(**{"prompt": "a fox", **fields})
                assert (error.value.code, error.value.param) == (code, param)
                assert error.value.type == "invalid_request_error"
            for mood, kind, code in (
                ("flagged", openai.BadRequestError, "safety_input"),
                ("noresult", openai.APIStatusError, "no_image"),
            ):
                with pytest.raises(kind) as failed:
                    client.images.generate(prompt=f"a fox [mood:{mood}]")
                assert failed.value.code == code
                assert isinstance(failed.value.body, dict)
                assert failed.value.body["task_id"] == failed.value.response.headers["x-request-id"]
                assert failed.value.body["billed"] in {"yes", "no", "unknown"}
            with pytest.raises(openai.NotFoundError):
                client.models.retrieve("gpt-2")
            with pytest.raises(openai.NotFoundError) as unknown:
                client.embeddings.create(model="x", input="y")
            assert unknown.value.code == "not_found", "a path that no dialect has, in the shape of this client"

        await call(sdk_for(broker, max_retries=2), fail)
        assert len(await broker.provider_jobs()) == 2


async def test_partial_failure_gives_the_images_that_exist(tmp_path: Path) -> None:
    async with broker_in(tmp_path, duration=0.4) as broker:
        body = {"prompt": "foxes", "n": 3}
        waiting = asyncio.create_task(broker.client.post("/v1/images/generations", json=body))

        async def list_tasks() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = (await broker.client.get("/api/tasks")).json()["data"]
            return found

        await until(list_tasks)
        canceled = await broker.client.delete(f"/api/task/{(await list_tasks())[0]['id']}")
        assert canceled.status_code == 200, canceled.text
        answer = await waiting
        assert (answer.status_code, len(answer.json()["data"])) == (200, 2)


async def test_models_are_listed_and_names_of_openai_are_refused_by_setting(tmp_path: Path) -> None:
    async with broker_in(tmp_path, openai_model="none") as broker:

        def ask(client: OpenAI) -> None:
            names = [model.id for model in client.models.list()]
            assert {"nano-banana", "nano-banana-pro"} <= set(names)
            assert client.models.retrieve("nano-banana-pro").id == "nano-banana-pro"
            assert client.models.retrieve("google/nano-banana-pro").object == "model"
            with pytest.raises(openai.BadRequestError, match="BROKER_OPENAI_MODEL"):
                client.images.generate(model="gpt-image-2", prompt="a fox")
            client.images.generate(prompt="the default needs no name")

        await call(sdk_for(broker), ask)


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        ("1024x1024", ("1:1", "1K")),
        ("1536x1024", ("3:2", "1K")),
        ("1024x1792", ("9:16", "1K")),
        ("256x256", ("1:1", "1K")),
        ("2048x1152", ("16:9", "2K")),
        ("2048x2048", ("1:1", "2K")),
        ("3840x2160", ("16:9", "4K")),
        ("2880x2880", ("1:1", "4K")),
        ("3072x1024", ("21:9", "2K")),
        ("99999x1", ("21:9", "1K")),
        ("auto", (None, None)),
        (None, (None, None)),
    ],
)
def test_size_becomes_the_nearest_ratio_and_resolution(size: str | None, shape: tuple[str | None, str | None]) -> None:
    chosen = choose_shape(Catalog.load().resolve("nano-banana-pro"), size, None)
    assert (chosen.aspect_ratio, chosen.resolution) == shape


@pytest.mark.parametrize(
    ("model", "quality", "resolution"),
    [
        ("nano-banana-pro", "low", "1K"),
        ("nano-banana-pro", "medium", "2K"),
        ("nano-banana-pro", "max", "4K"),
        ("nano-banana-pro", "auto", None),
        ("nano-banana-pro", "splendid", None),
        ("nano-banana", "high", None),
    ],
)
def test_quality_chooses_the_resolution_that_the_size_leaves_open(
    model: str, quality: str, resolution: str | None
) -> None:
    chosen = choose_shape(Catalog.load().resolve(model), "auto", quality)
    assert (chosen.resolution, chosen.is_quality_used) == (resolution, resolution is not None)
