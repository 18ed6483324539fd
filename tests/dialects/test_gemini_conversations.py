"""Conversations in the Gemini dialect: what a request says, and what Gemini gets back of its own turns."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from anyio import to_thread
from google import genai
from google.genai import types
from pydantic import SecretStr

from broker.api.dialects.gemini.contents import Conversation, read_conversation
from broker.api.dialects.gemini.orders import build_order
from broker.api.dialects.gemini.requests import GenerateContentRequest
from broker.api.dialects.gemini.spelling import Spelling, spell_image
from broker.api.shared.inline_images import split_document
from broker.errors import ApiError
from broker.orders import DataUriReference, ReferenceSource, Turn, TurnPart, UrlReference
from broker.providers.registry import load_catalog
from broker.sandbox.dialects.gemini.models import signature_of
from storage.images import StoredImage
from storage.sql.scope import EVERYTHING
from tests.dialects.matrix import KEY, base_url
from tests.support.brokers import RunningBroker
from tests.support.emulators import broker_before

pytestmark = pytest.mark.anyio

FLASH = "gemini-2.5-flash-image"
PRO = "gemini-3-pro-image"


# -- what a request says


def read(*contents: Any, most: int = 3, is_sdk: bool = False) -> Conversation:
    request = GenerateContentRequest.model_validate({"contents": list(contents)})
    return read_conversation(request.contents, max_images=most, is_sdk=is_sdk)


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "parts": list(parts)}


def model(*parts: Any) -> dict[str, Any]:
    return {"role": "model", "parts": list(parts)}


def text(words: str) -> dict[str, Any]:
    return {"text": words}


def image(data: str, **more: Any) -> dict[str, Any]:
    return {"inline_data": {"mime_type": "image/png", "data": data}, **more}


def data_of(source: ReferenceSource) -> str:
    assert isinstance(source, DataUriReference)
    return source.text.removeprefix("data:image/png;base64,")


def test_one_turn_with_its_text_first_needs_no_turns() -> None:
    said = read(user(text("a fox"), text("in snow"), image("AAAA")))
    assert (said.prompt, [data_of(one) for one in said.sources], said.turns) == ("a fox\nin snow", ["AAAA"], ())


def test_order_of_texts_and_images_in_one_turn_is_kept() -> None:
    said = read(user(text("this:"), image("AAAA"), text("in the style of"), image("BBBB")))
    parts = (
        TurnPart(text="this:"),
        TurnPart(reference=0),
        TurnPart(text="in the style of"),
        TurnPart(reference=1),
    )
    assert said.turns == (Turn(role="user", parts=parts),)
    assert said.prompt == "this:\nin the style of"


def test_prompt_has_what_was_said_since_the_last_image_of_the_model() -> None:
    fox = model(text("Here it is."), image("AAAA"))
    assert (read(user(text("a fox")), fox, user(text("blue")))).prompt == "blue"
    asked = read(user(text("a fox")), model(text("Which colour?")), user(text("red")))
    assert asked.prompt == "a fox\nred"
    assert (read(user(text("a fox")), fox, user(image("BBBB")))).prompt == "a fox"


def test_newest_images_of_earlier_turns_are_kept() -> None:
    turns = [user(text("a fox"), image("AAAA")), model(image("BBBB")), user(text("blue")), model(image("CCCC"))]
    said = read(*turns, user(text("and this"), image("DDDD")), most=2)
    assert [data_of(one) for one in said.sources] == ["CCCC", "DDDD"]
    assert said.left_out == ("contents[0].parts[1]", "contents[1].parts[0]")
    assert [[part.reference for part in turn.parts] for turn in said.turns] == [[None], [None], [0], [None, 1]]
    with pytest.raises(ApiError, match="3 images are too many"):
        read(user(text("three"), *[image("AAAA")] * 3), most=2)


def test_long_conversation_fits_into_what_the_providers_in_use_take() -> None:
    """Otherwise a chat ends in an error after so many images."""
    turns = [user(text("a fox")), *[model(image("AAAA")), user(text("again"))] * 9]
    request = GenerateContentRequest.model_validate({"contents": turns})
    for model_name, apis, most in ((PRO, {"kie"}, 8), (PRO, {"kie", "gemini"}, 9), (FLASH, {"kie"}, 3)):
        built = build_order(request, model_name, catalog=load_catalog(), apis=apis, is_sdk=False)
        assert len(built.order.sources) == most
        assert len(built.ignored) == 9 - most


def test_base64_of_either_alphabet_and_signatures_of_an_sdk_are_read() -> None:
    turns = [user(text("a fox")), model(image("_-8", thoughtSignature="a_-8=")), user(text("blue"))]
    for is_sdk, signature in ((True, "a/+8="), (False, "a_-8=")):
        said = read(*turns, is_sdk=is_sdk)
        assert data_of(said.sources[0]) == "/+8="
        assert said.turns[1].parts == (TurnPart(reference=0, signature=signature),)


def test_conversation_that_is_far_too_long_is_refused() -> None:
    with pytest.raises(ApiError, match="leave the oldest turns out"):
        read(user(text("a fox")), model(text("x" * 2**20)), user(text("blue")))
    request = GenerateContentRequest.model_validate({"contents": "a fox", "systemInstruction": "x" * 2**19})
    with pytest.raises(ApiError, match="shorten it"):
        build_order(request, PRO, catalog=load_catalog(), apis={"gemini"}, is_sdk=False)


def test_drafts_of_the_model_are_left_out() -> None:
    said = read(user(text("a fox")), model(image("AAAA", thought=True), image("BBBB")), user(text("blue")))
    assert [data_of(one) for one in said.sources] == ["BBBB"]


def test_short_forms_and_both_spellings_of_a_name_are_read() -> None:
    assert (read("a fox")).prompt == "a fox"
    assert (read({"parts": text("a fox")})).prompt == "a fox"
    both = {**image("AAAA"), "inlineData": {"mimeType": "image/png", "data": "BBBB"}}
    assert [data_of(one) for one in (read(user(text("a fox"), both))).sources] == ["BBBB"]
    file = {"file_data": {"file_uri": "https://broker.example/v1beta/files/x"}}
    assert (read(user(text("a fox"), file))).sources == (UrlReference(url="https://broker.example/v1beta/files/x"),)


@pytest.mark.parametrize(
    ("contents", "field"),
    [
        ([], "contents"),
        ([user()], "contents"),
        ([user(text("a fox")), model(image("AAAA"))], "contents"),
        ([{"role": "system", "parts": [text("a fox")]}], "contents[0].role"),
        ([user(text("a fox"), {"functionCall": {"name": "x"}})], "contents[0].parts[1].functionCall"),
        ([user(text("a fox"), {"inlineData": {"mimeType": "video/mp4", "data": ""}})], "contents[0].parts[1]"),
        ([user(text("a fox"), {"fileData": {"mimeType": "application/pdf", "fileUri": "x"}})], "contents[0].parts[1]"),
    ],
)
def test_what_is_neither_text_nor_image_is_refused(contents: list[Any], field: str) -> None:
    with pytest.raises(ApiError) as caught:
        read(*contents)
    assert (caught.value.status, caught.value.field) == (400, field)


SNAKE = '"inline_data":{"mime_type":"image/png","data": IMAGE}'
CAMEL = '"inlineData":{"mimeType":"image/png","data":IMAGE}'


@pytest.mark.parametrize(("spelling", "found"), [("camel", CAMEL), ("snake", SNAKE), ("both", f"{SNAKE},{CAMEL}")])
def test_only_the_copy_in_snake_case_has_a_blank(spelling: Spelling, found: str) -> None:
    row: dict[str, Any] = {"kind": "result", "position": 0, "media_type": "image/png", "size": 3, "created_at": 0.0}
    row |= {"name": "x.png", "owner": "task", "blob": "x", "sha256": "", "width": 1, "height": 1}
    pieces = split_document(spell_image(StoredImage(**row), spelling))
    shown = [
        piece.decode() if isinstance(piece, bytes) else piece.head.decode().replace('"', "IMAGE") for piece in pieces
    ]
    assert "".join(shown) == f"{{{found}}}"


# -- what Gemini gets back


@pytest.fixture(scope="module")
async def broker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningBroker]:
    """A broker before Gemini, whose emulator refuses an image of the model without its signature."""
    settings: dict[str, Any] = {"api_keys": (SecretStr(KEY),), "task_deadline": 20, "gemini_spelling": "snake"}
    async with broker_before("gemini", tmp_path_factory.mktemp("broker"), **settings) as running:
        running.client.headers["x-goog-api-key"] = KEY
        yield running


async def test_chat_by_the_sdk_returns_the_turns_of_gemini_unchanged(broker: RunningBroker) -> None:
    config = types.GenerateContentConfig(
        response_modalities=["TEXT", "IMAGE"],
        temperature=0.5,
        seed=7,
        system_instruction="only foxes",
        tools=[types.Tool(google_search=types.GoogleSearch())],
    )

    def talk(client: genai.Client) -> list[types.GenerateContentResponse]:
        with client:
            chat = client.chats.create(model=PRO, config=config)
            return [chat.send_message(words) for words in ("a red fox", "make it blue", "make it green")]

    options = types.HttpOptions(base_url=base_url(broker))
    answers = await to_thread.run_sync(talk, genai.Client(api_key=KEY, http_options=options))
    made = []
    for answer in answers:
        assert answer.parts
        first, second = answer.parts
        assert second.inline_data
        made.append(signature_of(second.inline_data.data or b""))
        assert (first.text, second.thought_signature) == ("Here is your image.", base64.b64decode(made[-1]))
    last = await broker.services.queries.get(answers[-1].response_id or "", EVERYTHING)
    assert (len(last.references), last.prompt) == (2, "make it green")
    signatures = [part.get("signature") for turn in last.turns for part in turn["parts"] if "reference" in part]
    assert signatures == made[:2]
    usage = answers[-1].usage_metadata
    assert usage
    assert (usage.prompt_token_count, usage.candidates_token_count, usage.total_token_count) == (10, 1232, 1242)
    job = (await broker.provider_jobs())[-1]
    assert job["prompt"].splitlines() == [
        *("a red fox", "Here is your image.", "make it blue", "Here is your image.", "make it green")
    ]
    config_sent, tools = job["request"]["config"], job["request"]["tools"]
    assert (config_sent["temperature"], config_sent["seed"], tools) == (0.5, 7, [{"googleSearch": {}}])
    answered = answers[-1].sdk_http_response
    assert answered
    assert "x-ignored" not in (answered.headers or {})


async def test_image_comes_first_for_an_sdk_that_does_not_ask_for_text(broker: RunningBroker) -> None:
    def generate(client: genai.Client) -> types.GenerateContentResponse:
        with client:
            return client.models.generate_content(model=PRO, contents="a fox for parts[0]")

    options = types.HttpOptions(base_url=base_url(broker))
    answer = await to_thread.run_sync(generate, genai.Client(api_key=KEY, http_options=options))
    assert [part.inline_data is not None for part in answer.parts or ()] == [True, False]


@pytest.mark.parametrize("mood", ["thoughts", "snake", "markdown"])
async def test_answer_has_the_image_first_for_clients_that_are_no_sdk(broker: RunningBroker, mood: str) -> None:
    """However the provider spells it; without its drafts."""
    body = {"contents": [user(text(f"a fox [mood:{mood}]"))], "systemInstruction": {"parts": [text("only foxes")]}}
    answer = await broker.client.post(f"/v1beta/models/{PRO}:generateContent", json=body)
    assert answer.status_code == 200, answer.text
    first, second = answer.json()["candidates"][0]["content"]["parts"]
    assert "inlineData" not in first, "BROKER_GEMINI_SPELLING"
    assert base64.b64decode(first["inline_data"]["data"], validate=True).startswith(b"\x89PNG")
    assert second["text"].startswith("Here")
    assert ("thoughtSignature" in first) == (mood != "markdown")
    assert json.dumps(answer.json()).count("stored:") == 0


async def test_odd_parts_beside_the_image_do_not_hide_it(broker: RunningBroker) -> None:
    """Relays write other types than Google, and the image is paid."""
    headers = {"Idempotency-Key": "odd-parts", "x-goog-api-client": "google-genai-sdk/1"}
    path, body = f"/v1beta/models/{PRO}:generateContent", {"contents": [user(text("an odd fox"))]}
    first = await broker.client.post(path, json=body, headers=headers)
    assert first.status_code == 200, first.text
    (task,) = await broker.services.tables.newest_tasks.list_newest(EVERYTHING, status=None, limit=1, before=None)
    turn = json.loads(task.turn or "")
    (made,) = [part for part in turn["parts"] if "inlineData" in part]
    odd = [{"inlineData": "x"}, {"inlineData": {"data": ["x"]}}, {"text": 5}, {"text": "fine", "thoughtSignature": 5}]
    odd += [{"text": f"![fox](stored:{task.id}/{'0' * 64})"}]
    changed = json.dumps({**turn, "parts": [*odd, made]})
    await broker.services.database.execute("UPDATE tasks SET turn = :turn WHERE id = :id", turn=changed, id=task.id)
    answer = await broker.client.post(path, json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    image, words = answer.json()["candidates"][0]["content"]["parts"]
    assert image == first.json()["candidates"][0]["content"]["parts"][0]
    assert words == {"text": "fine"}
