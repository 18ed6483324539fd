"""JSON responses with images in them, read in chunks of every size."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import ProviderError, SinkError
from broker.providers.inline_results import PIECE_BYTES, InlineDocument, read_inline_results
from tests.contracts.providers import RecordingSink
from webhooks.strict_json import MAX_VALUES

pytestmark = pytest.mark.anyio

IMAGE = bytes(range(256)) * 5
ENCODED = base64.b64encode(IMAGE).decode()


def is_image(enclosing: str, name: str) -> bool:
    return (enclosing, name) in {("inlineData", "data"), ("data", "b64_json")}


async def read(text: str | bytes, sink: RecordingSink, *, chunk: int = 65_536) -> InlineDocument:
    body = text.encode() if isinstance(text, str) else text

    async def chunks() -> AsyncIterator[bytes]:
        for begin in range(0, len(body), chunk):
            yield body[begin : begin + chunk]

    return await read_inline_results(chunks(), sink, is_image=is_image)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 127, 128, 129, 65_536])
async def test_images_are_stored_and_the_rest_is_kept(chunk: int) -> None:
    document = {
        "candidates": [
            {"content": {"parts": [{"inlineData": {"mimeType": "image/png", "data": ENCODED}}, {"text": 'a \\ "b"'}]}},
            {"content": {"parts": [{"inlineData": {"data": ENCODED, "mimeType": "x"}, "thoughtSignature": ENCODED}]}},
        ],
        "data": [{"b64_json": ENCODED}, {"b64_json": f"data:image/webp;base64,{ENCODED}", "n": 1}],
        "text": f"see ![it](data:image/jpeg;base64,{ENCODED}) and é",
    }
    sink = RecordingSink()
    found = await read(json.dumps(document, ensure_ascii=False), sink, chunk=chunk)
    assert sink.stored == [IMAGE] * 5
    assert found.outputs == {f"stored:{number}" for number in range(5)}
    first, second = found.body["candidates"]
    assert first["content"]["parts"] == [
        {"inlineData": {"mimeType": "image/png", "data": "stored:0"}},
        {"text": 'a \\ "b"'},
    ]
    assert second["content"]["parts"][0] == {
        "inlineData": {"data": "stored:1", "mimeType": "x"},
        "thoughtSignature": ENCODED,
    }
    assert found.body["data"] == [{"b64_json": "stored:2"}, {"b64_json": "stored:3", "n": 1}]
    assert found.body["text"] == "see ![it](stored:4) and é"


@pytest.mark.parametrize("part", ["[]", '"",' + "[]," * 99 + "[]"])
async def test_document_of_too_many_values_is_an_error(part: str) -> None:
    text = "[" + ",".join([part] * (MAX_VALUES // part.count("[") + 1)) + "]"
    with pytest.raises(ProviderError):
        await read(text, RecordingSink())


@pytest.mark.parametrize(
    "spelled",
    [
        pytest.param(ENCODED.replace("+", "-").replace("/", "_"), id="url alphabet"),
        pytest.param(ENCODED.rstrip("="), id="without padding"),
        pytest.param(ENCODED.replace("/", "\\/"), id="escaped slash"),
        pytest.param(ENCODED.replace("=", "\\u003d").replace("+", "\\u002B"), id="escaped for HTML"),
        pytest.param("\\r\\n".join(ENCODED[i : i + 76] for i in range(0, len(ENCODED), 76)), id="broken into lines"),
        pytest.param("data:image\\/png;base64," + ENCODED, id="data URI with an escaped slash"),
    ],
)
async def test_every_spelling_of_base64_is_decoded(spelled: str) -> None:
    for chunk in (1, 5, 1000):
        sink = RecordingSink()
        await read(f'{{"inlineData": {{ "data" : "{spelled}"}}}}', sink, chunk=chunk)
        assert sink.stored == [IMAGE]


async def test_image_of_many_pieces_is_decoded_whole() -> None:
    image = IMAGE * (3 * PIECE_BYTES // len(IMAGE)) + b"end"
    sink = RecordingSink()
    await read('{"inlineData":{"data":"' + base64.b64encode(image).decode() + '"}}', sink, chunk=1_000_003)
    assert sink.stored == [image]


async def test_empty_value_and_link_are_no_images() -> None:
    sink = RecordingSink()
    body = {"inlineData": {"data": ""}, "data": [{"b64_json": None}, {"b64_json": "https://cdn.example/1.png"}]}
    assert (await read(json.dumps(body), sink)).body == body
    assert sink.stored == []


async def test_text_that_looks_like_an_output_is_not_one_of_ours() -> None:
    found = await read('{"text": "stored:task_other/abc"}', RecordingSink())
    assert found.outputs == frozenset()


async def test_document_cut_anywhere_is_an_unknown_outcome() -> None:
    text = json.dumps(
        {"a": [1, {"inlineData": {"data": ENCODED[:40]}}], "t": f"x data:image/png;base64,{ENCODED[:40]} y"}
    )
    for length in range(len(text)):
        with pytest.raises(ProviderError):
            await read(text[:length], RecordingSink(), chunk=16)


async def test_image_that_is_not_base64_is_an_invalid_result() -> None:
    for broken in ("QUJD*", "QUJDR", 'QUJD\\"', "QQ==QUJD"):
        with pytest.raises(SinkError) as caught:
            await read(f'{{"inlineData":{{"data":"{broken}"}}}}', RecordingSink())
        assert caught.value.code == "invalid_result"


async def test_page_and_deep_nesting_are_provider_errors() -> None:
    for body in ('<html>"busy"</html>', "[" * 100 + "1", '{"a":' * 100 + "1", ""):
        with pytest.raises(ProviderError):
            await read(body, RecordingSink())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.just(f"data:image/png;base64,{ENCODED[:24]}"),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["data", "inlineData", "text"]) | st.text(), inner),
    max_leaves=20,
)


@given(document=JSON, chunk=st.integers(1, 40), ascii_only=st.booleans())
@settings(max_examples=150, deadline=None)
async def test_any_document_without_images_is_unchanged(document: Any, chunk: int, ascii_only: bool) -> None:
    text = json.dumps(document, ensure_ascii=ascii_only)
    try:
        body = text.encode()
        found = await read(body, RecordingSink(), chunk=chunk)
    except (SinkError, UnicodeEncodeError, ProviderError):
        return  # a text where an image belongs, a lone surrogate
    if not found.outputs:
        assert found.body == json.loads(text)
