"""The Gemini dialect, by google-genai and by the samples of a relay's documentation."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import httpx
import pytest
from anyio import to_thread
from google import genai
from google.genai import errors, types
from PIL import Image
from pydantic import SecretStr

from broker.api.dialects.gemini import gemini_dialect
from broker.api.dialects.gemini.schemas import GeminiAnswer
from broker.api.http.endpoint import Dialect
from broker.api.shared.held_answers import HeldAnswers
from broker.sandbox.engine import Options
from broker.services import Services
from storage.sql.scope import EVERYTHING
from tests.dialects.matrix import KEY, base_url
from tests.support.brokers import RunningBroker, open_broker

pytestmark = pytest.mark.anyio

T = TypeVar("T")
FLASH = "gemini-2.5-flash-image"
PRO = "gemini-3-pro-image-preview"
SAFETY = types.SafetySetting(
    category=types.HarmCategory.HARM_CATEGORY_HARASSMENT, threshold=types.HarmBlockThreshold.BLOCK_NONE
)
QUICK = "/quick"
"""Path prefix of the same dialect with blank lines after a moment."""


def picture(colour: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (120, 80), colour).save(out, "png")
    return out.getvalue()


def size_of(data: bytes | None) -> tuple[int, int]:
    with Image.open(io.BytesIO(data or b"")) as image:
        image.load()
        return image.size


def quick_dialect(services: Services) -> Dialect:
    held = replace(HeldAnswers.from_services(services), blanks_after_seconds=0.05, blank_seconds=0.03)
    dialect = gemini_dialect(services, held)
    endpoints = [
        replace(one, path=QUICK + one.path, operation_id=f"quick_{one.operation_id}") for one in dialect.endpoints
    ]
    return replace(dialect, name="quick", endpoints=endpoints, documents={})


@pytest.fixture(scope="module")
async def broker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningBroker]:
    """A broker before kie.ai, which has neither history nor search."""
    options = Options(duration=0.02, callback_spacing=0.02, creates_per_window=10_000)
    settings: dict[str, Any] = {"api_keys": (SecretStr(KEY),), "task_deadline": 20}
    folder = tmp_path_factory.mktemp("broker")
    async with open_broker(folder, options=options, extra_dialects=[quick_dialect], **settings) as running:
        running.client.headers["x-goog-api-key"] = KEY
        yield running


def sdk_for(broker: RunningBroker, path: str = "", key: str = KEY, **options: Any) -> genai.Client:
    chosen = types.HttpOptions(base_url=base_url(broker) + path, **options)
    return genai.Client(api_key=key, http_options=chosen)


async def call(client: genai.Client, use: Callable[[genai.Client], T]) -> T:
    """Use the SDK in a thread, and close it."""
    with client:
        return await to_thread.run_sync(use, client)


def generate(
    client: genai.Client, contents: Any = "a red fox", model: str = FLASH, **config: Any
) -> types.GenerateContentResponse:
    return client.models.generate_content(model=model, contents=contents, config=types.GenerateContentConfig(**config))


def image_of(answer: types.GenerateContentResponse) -> bytes:
    (data,) = [part.inline_data.data for part in answer.parts or () if part.inline_data]
    assert data is not None
    return data


def reasons_of(answer: types.GenerateContentResponse) -> list[Any]:
    return [candidate.finish_reason for candidate in answer.candidates or ()]


def ask(*parts: dict[str, Any], **config: Any) -> dict[str, Any]:
    return {"contents": [{"parts": list(parts)}], "generationConfig": config}


async def post(
    broker: RunningBroker,
    body: Any,
    *,
    model: str = FLASH,
    method: str = "generateContent",
    path: str = "",
    **more: Any,
) -> httpx.Response:
    return await broker.client.post(f"{path}/v1beta/models/{model}:{method}", json=body, **more)


async def jobs_of(broker: RunningBroker, prompt: str) -> list[dict[str, Any]]:
    """Return the inputs of the provider's jobs with a prompt."""
    return [job["request"]["input"] for job in await broker.provider_jobs() if job["prompt"] == prompt]


# -- the SDK


async def test_image_from_text_by_the_sdk(broker: RunningBroker) -> None:
    config: dict[str, Any] = {
        "response_modalities": ["IMAGE"],
        "image_config": types.ImageConfig(aspect_ratio="16:9", image_size="2K"),
        "temperature": 0.5,
        "safety_settings": [SAFETY],
    }
    answer = await call(sdk_for(broker), partial(generate, contents="a wide fox", model=PRO, **config))
    assert reasons_of(answer) == [types.FinishReason.STOP]
    assert size_of(image_of(answer)) == (2752, 1536)
    assert answer.usage_metadata
    assert (answer.model_version, answer.usage_metadata.total_token_count) == (PRO, 1130)
    (sent,) = await jobs_of(broker, "a wide fox")
    assert (sent["aspect_ratio"], sent["resolution"]) == ("16:9", "2K")
    headers = answer.sdk_http_response.headers if answer.sdk_http_response else None
    assert headers is not None
    assert (headers["x-request-id"], headers["x-should-retry"]) == (answer.response_id, "false")
    assert headers["x-ignored"] == "generationConfig.temperature, safetySettings"
    task = await broker.get_task(answer.response_id or "")
    assert (await broker.client.get(task["result"])).content == image_of(answer)


async def test_image_from_an_image_by_the_asynchronous_sdk(broker: RunningBroker) -> None:
    """The SDK writes base64 in the URL alphabet."""
    noise = Image.effect_noise((64, 64), 90)
    out = io.BytesIO()
    noise.save(out, "png")
    part = types.Part.from_bytes(data=out.getvalue(), mime_type="image/png")
    client = sdk_for(broker)
    async with client.aio as aio:
        answer = await aio.models.generate_content(
            model=FLASH, contents=types.Content(role="user", parts=[types.Part(text="a noisy fox"), part])
        )
    size_of(image_of(answer))
    client.close()
    (sent,) = await jobs_of(broker, "a noisy fox")
    assert len(sent["image_urls"]) == 1
    task = await broker.services.queries.get(answer.response_id or "", EVERYTHING)
    assert [one["size"] for one in task.references] == [len(out.getvalue())]


async def test_chat_by_the_sdk_gives_a_provider_without_memory_the_image_and_the_last_words(
    broker: RunningBroker,
) -> None:
    def talk(client: genai.Client) -> list[str]:
        chat = client.chats.create(model=FLASH)
        return [chat.send_message(text).response_id or "" for text in ("a fox in a chat", "make it blue")]

    first, second = await call(sdk_for(broker), talk)
    (sent,) = await jobs_of(broker, "make it blue")
    assert len(sent["image_urls"]) == 1
    made, used = await broker.get_task(first), await broker.services.queries.get(second, EVERYTHING)
    assert used.references[0]["sha256"] == made["results"][0]["sha256"]
    assert [turn["role"] for turn in used.turns] == ["user", "model", "user"]


async def test_stream_by_both_sdks(broker: RunningBroker) -> None:
    def read(client: genai.Client) -> list[types.GenerateContentResponse]:
        return list(client.models.generate_content_stream(model=FLASH, contents="a red fox"))

    client = sdk_for(broker)
    async with client.aio as aio:
        stream = await aio.models.generate_content_stream(model=FLASH, contents="a red fox")
        chunks = [chunk async for chunk in stream]
    for got in (chunks, await call(client, read)):
        shown, end = got
        size_of(image_of(shown))
        assert reasons_of(end) == [types.FinishReason.STOP]
        assert end.usage_metadata
        assert end.usage_metadata.candidates_token_count == 1290
        assert end.response_id == shown.response_id


async def test_models_by_the_sdk(broker: RunningBroker) -> None:
    def read(client: genai.Client) -> tuple[list[types.Model], types.Model]:
        return list(client.models.list()), client.models.get(model=PRO)

    for version in ("v1", "v1beta"):
        models, pro = await call(sdk_for(broker, api_version=version), read)
        assert f"models/{FLASH}" in [model.name for model in models]
        assert pro.name == f"models/{PRO}"
        assert "generateContent" in (pro.supported_actions or ())


# -- errors


async def refused(broker: RunningBroker, key: str = KEY, **arguments: Any) -> errors.APIError:
    with pytest.raises(errors.APIError) as caught:
        await call(sdk_for(broker, key=key), partial(generate, **arguments))
    return caught.value


def info_of(error: errors.APIError) -> dict[str, Any]:
    """Return the ErrorInfo of an error."""
    info: dict[str, Any] = error.details["error"]["details"][0]
    assert info["@type"] == "type.googleapis.com/google.rpc.ErrorInfo"
    return info


async def test_errors_are_exceptions_of_the_sdk(broker: RunningBroker) -> None:
    part = types.Part.from_bytes(data=picture(), mime_type="image/png")
    sound = types.Part.from_bytes(data=b"RIFF", mime_type="audio/wav")
    search = [types.Tool(google_search=types.GoogleSearch())]
    before = len(await broker.provider_jobs())
    for reason, status, arguments in (
        ("too_many_images", "INVALID_ARGUMENT", {"contents": ["four", *[part] * 4]}),
        ("too_many_images", "INVALID_ARGUMENT", {"contents": ["fifteen", *[part] * 15], "model": PRO}),
        ("invalid_request", "INVALID_ARGUMENT", {"contents": ["a sound", sound]}),
        ("unsupported_parameter", "INVALID_ARGUMENT", {"tools": search}),
        ("unsupported_parameter", "INVALID_ARGUMENT", {"response_modalities": ["TEXT"]}),
        ("unsupported_parameter", "INVALID_ARGUMENT", {"image_config": types.ImageConfig(image_size="4K")}),
        ("invalid_prompt", "INVALID_ARGUMENT", {"contents": " "}),
        ("not_found", "NOT_FOUND", {"model": "gpt-image-1"}),
        ("unauthorized", "UNAUTHENTICATED", {"key": "wrong-key-of-a-caller"}),
    ):
        error = await refused(broker, **arguments)
        assert isinstance(error, errors.ClientError), arguments
        assert (info_of(error)["reason"], error.status) == (reason, status), error
    assert len(await broker.provider_jobs()) == before, "nothing was ordered"


async def test_error_names_the_field_of_the_request(broker: RunningBroker) -> None:
    answer = await post(broker, ask({"text": "a fox"}, imageConfig={"aspectRatio": "7:1", "imageSize": "9K"}))
    violations = answer.json()["error"]["details"][1]["fieldViolations"]
    assert [one["field"] for one in violations] == [
        *("generationConfig.imageConfig.aspectRatio", "generationConfig.imageConfig.imageSize")
    ]


async def test_failed_order_is_an_error_that_names_the_task_and_whether_it_cost(broker: RunningBroker) -> None:
    for mood, code, reason in (("flagged", 400, "safety_input"), ("noresult", 424, "no_image")):
        error = await refused(broker, contents=f"a red fox [mood:{mood}]")
        info = info_of(error)
        assert (error.code, info["reason"], set(info["metadata"])) == (code, reason, {"retryable", "billed", "taskId"})
        task = await broker.get_task(info["metadata"]["taskId"])
        assert task["errorDetail"]["billed"] == info["metadata"]["billed"]


# -- answers that are not sent to their end


async def test_sdk_that_gives_up_and_repeats_makes_one_order(broker: RunningBroker) -> None:
    retries = types.HttpRetryOptions(attempts=20, initial_delay=0.05, max_delay=0.05, exp_base=1, jitter=0.01)
    client = sdk_for(broker, timeout=200, retry_options=retries)
    answer = await call(client, partial(generate, contents="a late fox [mood:slow:0.5]"))
    size_of(image_of(answer))
    assert len(await jobs_of(broker, "a late fox [mood:slow:0.5]")) == 1


async def test_answer_that_was_cut_off_is_sent_again(broker: RunningBroker) -> None:
    host, port = broker.client.base_url.host, broker.client.base_url.port
    body = json.dumps(ask({"text": "a cut fox"})).encode()
    head = f"POST /v1/models/{FLASH}:generateContent?key={KEY} HTTP/1.1\r\nHost: {host}:{port}\r\n"
    loop = asyncio.get_running_loop()
    with socket.socket() as client:  # a stream of asyncio reads more than it is asked for, perhaps the whole answer
        client.setblocking(False)
        await loop.sock_connect(client, (host, port))
        await loop.sock_sendall(client, f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert await loop.sock_recv(client, 1000)
    first = await call(sdk_for(broker), partial(generate, contents="a cut fox"))
    assert len(await jobs_of(broker, "a cut fox")) == 1
    second = await call(sdk_for(broker), partial(generate, contents="a cut fox"))
    assert first.response_id != second.response_id, "the first one was answered"


async def test_late_answer_begins_with_blank_lines(broker: RunningBroker) -> None:
    """The SDK reads the image, and a failure as a candidate that names the task."""
    prompt = "a patient fox [mood:slow:0.15]"
    raw = await post(broker, ask({"text": prompt}), path=QUICK)
    assert set(raw.text.partition("{")[0]) == {"\n"}
    GeminiAnswer.model_validate(raw.json())
    size_of(image_of(await call(sdk_for(broker, QUICK), partial(generate, contents=prompt))))
    failed = await call(sdk_for(broker, QUICK), partial(generate, contents=f"{prompt} [mood:noresult]"))
    assert reasons_of(failed) == [types.FinishReason.IMAGE_OTHER]
    assert failed.response_id
    assert failed.response_id in (failed.text or "")
    assert (await broker.get_task(failed.response_id))["status"] == "failed"


async def test_late_stream_is_kept_open_by_blank_lines_alone(broker: RunningBroker) -> None:
    prompt = "a patient fox [mood:slow:0.15]"

    def read(client: genai.Client, text: str) -> list[types.GenerateContentResponse]:
        return list(client.models.generate_content_stream(model=FLASH, contents=text))

    shown, _ = await call(sdk_for(broker, QUICK), partial(read, text=prompt))
    size_of(image_of(shown))
    (failed,) = await call(sdk_for(broker, QUICK), partial(read, text=f"{prompt} [mood:noresult]"))
    assert reasons_of(failed) == [types.FinishReason.IMAGE_OTHER]
    raw = await post(broker, ask({"text": prompt}), path=QUICK, method="streamGenerateContent", params={"alt": "sse"})
    blanks, *events = raw.text.split("data: ")
    assert set(blanks) == {"\n"}
    assert [json.loads(event)["responseId"] for event in events] == [raw.headers["x-request-id"]] * 2
    array = await post(broker, ask({"text": prompt}), path=QUICK, method="streamGenerateContent")
    assert len(array.json()) == 2


async def test_client_that_does_not_wait_gets_the_task(broker: RunningBroker) -> None:
    answer = await post(broker, ask({"text": "a quick fox"}), headers={"Prefer": "respond-async"})
    assert (answer.status_code, answer.headers["location"]) == (202, answer.json()["pollUrl"])
    assert (await broker.wait_end(answer.json()["responseId"]))["status"] == "completed"


# -- the samples of a relay


PYTHON_SAMPLE = """
import base64, json, urllib.request

def generate_image(prompt, output="generated.png"):
    payload = {{
        "contents": [{{"parts": [{{"text": prompt}}]}}],
        "generationConfig": {{"responseModalities": ["IMAGE"], "imageConfig": {{"aspectRatio": "16:9"}}}},
    }}
    save(payload, output)

def edit_image(prompt, source, output="edited.png"):
    with open(source, "rb") as file:
        image = base64.b64encode(file.read()).decode()
    parts = [{{"text": prompt}}, {{"inline_data": {{"mime_type": "image/png", "data": image}}}}]
    payload = {{"contents": [{{"parts": parts}}]}}
    save(payload, output)

def save(payload, output):
    url = "{url}/v1beta/models/gemini-2.5-flash-image:generateContent?key={key}"
    request = urllib.request.Request(url, json.dumps(payload).encode(), {{"Content-Type": "application/json"}})
    with urllib.request.urlopen(request) as response:
        result = json.load(response)
    image = result["candidates"][0]["content"]["parts"][0]["inline_data"]["data"]
    with open(output, "wb") as file:
        file.write(base64.b64decode(image))
    print(result["candidates"][0]["content"]["role"], result["candidates"][0]["finishReason"], result["usageMetadata"])

generate_image("a sample fox")
edit_image("a blue sample fox", "generated.png")
"""
SHELL_SAMPLE = """
curl -s -X POST "{url}/v1beta/models/gemini-2.5-flash-image:generateContent?key={key}" \\
  -H "Content-Type: application/json" \\
  -d '{{"contents": [{{"parts": [{{"text": "a shell fox"}}]}}],
       "generationConfig": {{"responseModalities": ["TEXT", "IMAGE"]}}}}' \\
  | grep -o '"data": "[^"]*"' | cut -d'"' -f4 | base64 --decode > shell.png
"""


async def test_samples_of_a_relay_run_unchanged(broker: RunningBroker, tmp_path: Any) -> None:
    values = {"url": base_url(broker), "key": KEY}
    for program, text in (("python3", PYTHON_SAMPLE), ("bash", SHELL_SAMPLE)):
        process = await asyncio.create_subprocess_exec(
            program, "-c", text.format(**values), cwd=tmp_path, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
        assert process.returncode == 0
        if program == "python3":
            assert (
                out.decode().count(
                    "model STOP {'promptTokenCount': 10, 'candidatesTokenCount': 1290, 'totalTokenCount': 1300"
                )
                == 2
            )
    sizes = [size_of((tmp_path / name).read_bytes()) for name in ("generated.png", "edited.png", "shell.png")]
    assert sizes[0] == (1344, 768)


async def test_client_that_sends_its_answer_back_shows_its_image_once(broker: RunningBroker) -> None:
    """Such clients add the whole content, with both spellings of the image, to their next request."""
    first = (await post(broker, ask({"text": "an infographic"}))).json()["candidates"][0]["content"]
    assert {"inline_data", "inlineData"} == set(first["parts"][0])
    turns = [
        {"role": "user", "parts": [{"text": "an infographic"}]},
        first,
        {"role": "user", "parts": [{"text": "the infographic in Spanish"}]},
    ]
    answer = await post(broker, {"contents": turns}, model="models/google/gemini-2.5-flash-image")
    assert answer.status_code == 200, answer.text
    (sent,) = await jobs_of(broker, "the infographic in Spanish")
    assert len(sent["image_urls"]) == 1


async def test_candidates_are_images_of_one_order(broker: RunningBroker) -> None:
    answer = (await post(broker, ask({"text": "two foxes"}, candidate_count=2))).json()
    GeminiAnswer.model_validate(answer)
    assert [candidate["index"] for candidate in answer["candidates"]] == [0, 1]
    assert answer["usageMetadata"]["candidatesTokenCount"] == 2 * 1290
    for candidate in answer["candidates"]:
        size_of(base64.b64decode(candidate["content"]["parts"][0]["inlineData"]["data"], validate=True))
    assert len(await jobs_of(broker, "two foxes")) == 2
