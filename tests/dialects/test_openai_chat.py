"""Chats with image output, by the openai SDK."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any, Final

import openai
import pytest
from openai import OpenAI

from broker.api.dialects.openai.chat_requests import OpenAIChatRequest
from broker.api.dialects.openai.models import ModelNames
from broker.catalog import Catalog
from broker.orders import DataUriReference
from tests.dialects.openai_sdk import broker_in, call, inputs_of, picture, sdk_for, size_of

pytestmark = pytest.mark.anyio

IMAGES: Final[dict[str, Any]] = {"modalities": ["image", "text"]}


def as_uri(image: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


def image_part(image: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": as_uri(image)}}


async def test_chat_goes_on_with_the_image_of_the_answer(tmp_path: Path) -> None:
    async with broker_in(tmp_path) as broker:

        def chat(client: OpenAI) -> None:
            config = {"image_config": {"aspect_ratio": "16:9", "image_size": "1K"}}
            messages: list[Any] = [{"role": "user", "content": "a red fox"}]
            raw = client.chat.completions.with_raw_response.create(
                model="nano-banana-pro", messages=messages, extra_body={**IMAGES, **config, "tools": []}
            )
            first = raw.parse()
            assert (first.object, first.model, raw.headers["x-ignored"]) == (
                "chat.completion",
                "nano-banana-pro",
                "tools",
            )
            assert first.usage is not None
            assert first.usage.completion_tokens == 1120
            made: Any = first.choices[0].message
            assert size_of(made.images[0]["image_url"]["url"].partition(",")[2]) == (1376, 768)
            messages += [made.model_dump(), {"role": "user", "content": "now in snow"}]
            second = client.chat.completions.create(model="nano-banana-pro", messages=messages, n=2, extra_body=IMAGES)
            assert [choice.index for choice in second.choices] == [0, 1]

        await call(sdk_for(broker), chat)
        first, *others = await inputs_of(broker)
        assert (first["prompt"], first["aspect_ratio"], first["resolution"]) == ("a red fox", "16:9", "1K")
        for other in others:
            assert (other["prompt"], len(other["image_input"])) == ("now in snow", 1), "the answer is the reference"


async def test_chat_is_streamed_as_chunks_or_ends_with_an_error(tmp_path: Path) -> None:
    async with broker_in(tmp_path) as broker:

        def chat(client: OpenAI) -> None:
            parts: Any = [{"type": "text", "text": "blue"}, image_part(picture())]
            chunks = list(
                client.chat.completions.create(
                    model="gpt-image-2",
                    messages=[{"role": "user", "content": parts}],
                    stream=True,
                    stream_options={"include_usage": True},
                    extra_body=IMAGES,
                )
            )
            begin, end, usage = chunks
            delta: Any = begin.choices[0].delta
            assert size_of(delta.images[0]["image_url"]["url"].partition(",")[2]) == (1024, 1024)
            assert (delta.role, end.choices[0].finish_reason, usage.choices) == ("assistant", "stop", [])
            assert usage.usage is not None
            assert usage.usage.total_tokens == 1290
            with pytest.raises(openai.APIError) as failed:
                list(
                    client.chat.completions.create(
                        model="gpt-image-2",
                        messages=[{"role": "user", "content": "a fox [mood:flagged]"}],
                        stream=True,
                        extra_body=IMAGES,
                    )
                )
            assert failed.value.code == "safety_input"

        await call(sdk_for(broker), chat)


async def test_chat_that_asks_for_no_image_is_refused(tmp_path: Path) -> None:
    async with broker_in(tmp_path) as broker:

        def refuse(client: OpenAI) -> None:
            user = {"role": "user", "content": "hello"}
            refused: list[tuple[Any, dict[str, Any], str]] = [
                ([user], {}, "modalities"),
                ([user], {"modalities": ["text"]}, "modalities"),
                ([user], {"modalities": ["image", "audio"]}, "modalities"),
                ([user, {"role": "assistant", "content": "hi"}], IMAGES, "messages"),
                ([{"role": "user", "content": [{"type": "input_audio"}]}], IMAGES, "messages.0.content"),
                ([user], {**IMAGES, "image_config": {"aspect_ratio": "5:1"}}, "image_config.aspect_ratio"),
            ]
            for messages, body, param in refused:
                with pytest.raises(openai.BadRequestError) as error:
                    client.chat.completions.create(model="nano-banana", messages=messages, extra_body=body)
                assert error.value.param == param

        await call(sdk_for(broker), refuse)
        assert await broker.provider_jobs() == []


def build(*messages: dict[str, Any], model: str = "nano-banana") -> Any:
    catalog = Catalog.load()
    names = ModelNames.from_setting("", catalog, catalog.models)
    return OpenAIChatRequest.model_validate({"messages": messages, "model": model, **IMAGES}).to_order(
        names, lambda found: found.max_references
    )


def test_conversation_becomes_turns_and_a_prompt_for_providers_without_history() -> None:
    answer = {"role": "assistant", "content": "here", "images": [image_part(b"one")]}
    order = build(
        {"role": "system", "content": "in oil"},
        {"role": "user", "content": [{"type": "text", "text": "like this"}, image_part(b"zero")]},
        answer,
        {"role": "user", "content": "with a hat"},
        {"role": "assistant", "content": "which one?"},
        {"role": "user", "content": "a red one"},
    )
    assert order.params.prompt == "in oil\n\nwith a hat\n\na red one"
    assert order.sources == (DataUriReference(text=as_uri(b"zero")), DataUriReference(text=as_uri(b"one")))
    described = [(turn.role, [part.text or part.reference for part in turn.parts]) for turn in order.turns]
    assert described == [
        ("user", ["in oil", "like this", 0]),
        ("model", ["here", 1]),
        ("user", ["with a hat"]),
        ("model", ["which one?"]),
        ("user", ["a red one"]),
    ]
    assert build({"role": "user", "content": "alone"}).turns == ()


def test_oldest_images_of_a_long_conversation_are_left_out() -> None:
    turns = [
        message
        for number in range(12)
        for message in (
            {"role": "user", "content": f"step {number}"},
            {"role": "assistant", "images": [image_part(bytes([number]))]},
        )
    ]
    order = build(*turns, {"role": "user", "content": "the last step"})
    assert [source.text for source in order.sources] == [as_uri(bytes([number])) for number in range(2, 12)]
    references = [part.reference for turn in order.turns for part in turn.parts if part.reference is not None]
    assert references == list(range(10))
    assert order.params.prompt == "the last step"
