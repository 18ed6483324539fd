"""What the adapter sends to Gemini: parameters, and conversations with their signatures."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from broker.orders import ImageParams, Order, Reference, Turn, TurnPart
from broker.providers.gemini.requests import build_content
from broker.providers.inline_requests import stream_body
from broker.providers.registry import load_catalog

pytestmark = pytest.mark.anyio

CATALOG = load_catalog()
SIGNATURE = "QUJD/+8="


def reference(name: str) -> Reference:
    async def read() -> AsyncIterator[bytes]:
        yield name.encode()

    return Reference(name=name, media_type="image/png", size=len(name), sha256="", url=None, read=read)


def an_order(*turns: Turn, images: Sequence[str] = (), **params: Any) -> Order:
    given = ImageParams(prompt="make it blue", model="nano-banana-pro", **params)
    mode: Any = "image-to-image" if images else "text-to-image"
    return Order(params=given, mode=mode, references=tuple(map(reference, images)), turns=turns)


async def sent_body(order: Order) -> Any:
    """Return the body of an order with all images in it, as it is sent."""
    wire = CATALOG.wire("gemini", order.params.model, order.mode)
    assert wire is not None
    body = stream_body(lambda data: build_content(order, wire.spell(order, ()), data), order.references)
    sent = b"".join([chunk async for chunk in body.chunks])
    assert len(sent) == body.size
    return json.loads(sent)


def user(*parts: TurnPart) -> Turn:
    return Turn(role="user", parts=parts)


def model(*parts: TurnPart) -> Turn:
    return Turn(role="model", parts=parts)


def image(name: str, **signature: str) -> dict[str, Any]:
    inline = {"mimeType": "image/png", "data": base64.b64encode(name.encode()).decode()}
    return {"inlineData": inline, **signature}


async def test_parameters_are_sent_where_the_api_has_them() -> None:
    extra = {"temperature": 0.5, "topP": 0.9, "topK": 40, "maxOutputTokens": 4096, "systemInstruction": "only foxes"}
    body = await sent_body(an_order(seed=7, extra=extra))
    assert body["systemInstruction"] == {"parts": [{"text": "only foxes"}]}
    assert body["generationConfig"] == {
        "responseModalities": ["TEXT", "IMAGE"],
        "seed": 7,
        "temperature": 0.5,
        "topP": 0.9,
        "topK": 40,
        "maxOutputTokens": 4096,
    }


async def test_conversation_is_sent_turn_by_turn_with_its_signatures_byte_for_byte() -> None:
    order = an_order(
        user(TurnPart(text="a red fox"), TurnPart(reference=0)),
        model(TurnPart(text="Here it is.", signature=SIGNATURE), TurnPart(reference=1, signature=SIGNATURE)),
        user(TurnPart(text="make it blue")),
        images=("sketch", "fox"),
    )
    assert (await sent_body(order))["contents"] == [
        {"role": "user", "parts": [{"text": "a red fox"}, image("sketch")]},
        {
            "role": "model",
            "parts": [
                {"text": "Here it is.", "thoughtSignature": SIGNATURE},
                image("fox", thoughtSignature=SIGNATURE),
            ],
        },
        {"role": "user", "parts": [{"text": "make it blue"}]},
    ]


async def test_image_of_the_model_without_a_signature_is_shown_by_the_user() -> None:
    """Another provider made it; the models refuse it in a turn of theirs."""
    order = an_order(
        user(TurnPart(text="a red fox")),
        model(TurnPart(reference=0), TurnPart(reference=1, signature=SIGNATURE)),
        user(TurnPart(text="make it blue")),
        images=("first", "second"),
    )
    assert (await sent_body(order))["contents"] == [
        {"role": "user", "parts": [{"text": "a red fox"}]},
        {"role": "model", "parts": [image("second", thoughtSignature=SIGNATURE)]},
        {"role": "user", "parts": [image("first"), {"text": "make it blue"}]},
    ]


def written(*parts: dict[str, Any], shown: TurnPart) -> Turn:
    """Return a turn of the model with what its provider wrote, and the image that is kept of it."""
    return Turn(role="model", parts=(TurnPart(text="Plain."), shown), content=json.dumps({"parts": parts}))


async def test_turn_of_an_earlier_task_is_sent_as_its_provider_wrote_it() -> None:
    """Signatures of texts and thoughts too; without drafts, and without images that are not sent any more."""
    thought = {"text": "First a sketch.", "thought": True, "thoughtSignature": SIGNATURE}
    draft = {"inlineData": {"mimeType": "image/png", "data": "stored:task/draft"}, "thought": True}
    words = {"text": "Here it is.", "thoughtSignature": SIGNATURE, "partMetadata": {"x": 1}}
    fox = {"inline_data": {"mime_type": "image/png", "data": "stored:task/fox"}, "thoughtSignature": SIGNATURE}
    old = {"inlineData": {"mimeType": "image/png", "data": "stored:task/old"}, "thoughtSignature": SIGNATURE}
    shown = TurnPart(reference=0, output="stored:task/fox")
    turn = written(thought, draft, words, old, fox, shown=shown)
    order = an_order(user(TurnPart(text="a fox")), turn, user(TurnPart(text="blue")), images=("fox",))
    assert (await sent_body(order))["contents"] == [
        {"role": "user", "parts": [{"text": "a fox"}]},
        {"role": "model", "parts": [thought, words, image("fox", thoughtSignature=SIGNATURE)]},
        {"role": "user", "parts": [{"text": "blue"}]},
    ]


@pytest.mark.parametrize(
    "parts",
    [
        [{"inlineData": {"mimeType": "image/png", "data": "stored:task/fox"}}],
        [{"text": "![fox](stored:task/fox)", "thoughtSignature": SIGNATURE}],
    ],
    ids=["no signature", "an image in a text"],
)
async def test_turn_whose_image_cannot_be_put_back_is_shown_by_the_user(parts: list[dict[str, Any]]) -> None:
    turn = written(*parts, shown=TurnPart(reference=0, output="stored:task/fox"))
    order = an_order(user(TurnPart(text="a fox")), turn, user(TurnPart(text="blue")), images=("fox",))
    assert (await sent_body(order))["contents"] == [
        {"role": "user", "parts": [{"text": "a fox"}]},
        {"role": "model", "parts": [{"text": "Plain."}]},
        {"role": "user", "parts": [image("fox"), {"text": "blue"}]},
    ]


async def test_reference_outside_the_turns_is_not_lost() -> None:
    order = an_order(user(TurnPart(text="make it blue")), images=("fox",))
    assert (await sent_body(order))["contents"][-1] == {"role": "user", "parts": [image("fox")]}


async def test_plan_of_a_conversation_has_its_turns_without_images() -> None:
    """The images are stored after it."""
    order = an_order(user(TurnPart(text="a fox"), TurnPart(reference=0)), model(TurnPart(reference=1)))
    assert (await sent_body(order))["contents"] == [{"role": "user", "parts": [{"text": "a fox"}]}]


async def test_search_is_an_obstacle_at_a_provider_without_it() -> None:
    order = an_order(extra={"google_search": True})
    assert CATALOG.find_obstacle("gemini", order, 0) is None
    obstacle = CATALOG.find_obstacle("kie", order, 0)
    assert obstacle is not None
    assert (obstacle[0], obstacle[1].field) == ("unsupported_parameter", "google_search")
