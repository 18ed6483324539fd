"""Models and prices: a form can be built from the list, and a request that its model does not accept is rejected."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from broker.catalog import Model
from broker.providers.registry import load_catalog
from tests.api.test_api_create import BAD_JSON_VALUES, BAD_VALUES, CREATE, DATA_URI, PROMPT, check_rejected
from tests.support.api import ApiBroker, open_api, png
from tests.support.clock import ManualClock

pytestmark = pytest.mark.anyio

CATALOG = load_catalog()
TODAY = datetime(2026, 11, 20, tzinfo=UTC).timestamp()
"""The day on which the catalog was written."""


async def list_models(broker: ApiBroker) -> dict[str, Any]:
    answer = await broker.client.get("/api/models")
    assert answer.status_code == 200
    return {model["name"]: model for model in answer.json()["data"]}


# -- the list


async def test_list_has_everything_that_a_form_needs(tmp_path: Path) -> None:
    async with open_api(tmp_path, clock=ManualClock(TODAY)) as broker:
        document = (await broker.client.get("/api/models")).json()
        assert (document["success"], document["default"], document["provider"]) == (True, "nano-banana", "kie")
        assert document["providers"] == ["kie"]
        pro = (await list_models(broker))["nano-banana-pro"]
        aliases = {alias["name"]: alias["until"] for alias in pro.pop("aliases")}
        assert aliases["gemini-3-pro-image"] is None
        assert aliases["gemini-3-pro-image-preview"] == "2026-06-25"
        sizes = pro.pop("pixelSizes")
        assert list(sizes) == [ratio for ratio in pro["aspectRatios"] if ratio != "auto"]
        assert sizes["16:9"]["4K"] == {"width": 5504, "height": 3072}
        limits = {
            "aspectRatios": ["1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9", "auto"],
            "resolutions": ["1K", "2K", "4K"],
            "outputFormats": ["png", "jpg"],
            "maxReferences": 8,
            "promptLimit": 10_000,
        }
        pro["providers"] = [offer for offer in pro["providers"] if offer["name"] == "kie"]
        assert pro == {
            "name": "nano-banana-pro",
            "title": "Nano Banana Pro",
            "default": False,
            "available": True,
            "status": "live",
            "deprecatedOn": None,
            "shutdownOn": None,
            "instead": None,
            "modes": ["text-to-image", "image-to-image"],
            **limits,
            "maxReferenceBytes": 10_485_760,
            "outputTokens": {"1K": 1120, "2K": 1120, "4K": 2000},
            "providers": [
                {
                    **limits,
                    "name": "kie",
                    "inUse": True,
                    "modes": ["text-to-image", "image-to-image"],
                    "prices": {"1K": 18, "2K": 18, "4K": 24},
                    "unit": "credits",
                    "usdPrices": {"1K": 0.09, "2K": 0.09, "4K": 0.12},
                    "metered": False,
                    "pricedOn": "2026-11-20",
                }
            ],
        }


@pytest.mark.parametrize(
    ("day", "status"), [((2026, 9, 17), "live"), ((2026, 9, 18), "deprecated"), ((2026, 10, 2), "retired")]
)
async def test_status_is_that_of_today(tmp_path: Path, day: tuple[int, int, int], status: str) -> None:
    async with open_api(tmp_path, clock=ManualClock(datetime(*day, tzinfo=UTC).timestamp())) as broker:
        model = (await list_models(broker))["nano-banana"]
        assert (model["status"], model["shutdownOn"]) == (status, "2026-10-02")
        assert model["instead"] == "nano-banana-2-lite"


async def test_models_of_other_providers_are_not_available(tmp_path: Path) -> None:
    """The older dialect serves one model, at an unknown price."""
    async with open_api(tmp_path, api_url="http://127.0.0.1:9/nano-banana") as broker:
        models = await list_models(broker)
        assert {name for name, model in models.items() if model["available"]} == {"nano-banana"}
        offers = {offer["name"]: offer for offer in models["nano-banana"]["providers"]}
        assert (offers["legacy"]["prices"], offers["legacy"]["unit"]) == ({}, None)
        assert (offers["legacy"]["inUse"], offers["kie"]["inUse"]) == (True, False)
        assert models["nano-banana"]["outputFormats"] == []  # this dialect has no field for it
        assert models["nano-banana-pro"]["maxReferences"] == 14  # its own, because no provider in use serves it
        answer = await broker.client.post(CREATE, json={**PROMPT, "model": "nano-banana-pro"})
        await check_rejected(broker, "a model of another provider", answer, "unsupported_parameter")


async def test_lower_limit_of_the_broker_applies(tmp_path: Path) -> None:
    async with open_api(tmp_path, max_file_size=20_000_000) as broker:
        models = await list_models(broker)
        assert models["nano-banana"]["maxReferenceBytes"] == 10_485_760
        assert models["nano-banana-pro"]["maxReferenceBytes"] == 20_000_000


# -- names that their vendor withdrew


@pytest.mark.parametrize("dry", [False, True])
async def test_retired_name_is_served_with_a_warning(tmp_path: Path, dry: bool) -> None:
    async with open_api(tmp_path, clock=ManualClock(TODAY)) as broker:
        order = {**PROMPT, "model": "models/Gemini-3-Pro-Image-Preview", "dryRun": dry}
        answer = await broker.client.post(CREATE, json=order)
        document = answer.json()
        assert answer.status_code == (200 if dry else 202)
        sentence = "Google took the name gemini-3-pro-image-preview back on 2026-06-25. Use nano-banana-pro instead."
        assert (document["data"] if dry else document)["warnings"] == [sentence]
        assert answer.headers["warning"] == f'299 - "{sentence}"'


async def test_model_with_dates_is_served_with_a_warning(tmp_path: Path) -> None:
    """The end of the model and of the name are both announced, for the default model, too."""
    async with open_api(tmp_path, clock=ManualClock(TODAY)) as broker:
        default = await broker.client.post(CREATE, json=PROMPT)
        assert "shut nano-banana (gemini-2.5-flash-image) down on 2026-10-02" in default.headers["warning"]
        assert "Use nano-banana-2-lite instead" in default.headers["warning"]
        both = await broker.client.post(CREATE, json={**PROMPT, "model": "gemini-3.1-flash-image-preview"})
        assert len(both.json()["warnings"]) == 2
        assert both.headers["warning"].count("299 - ") == 2
        live = await broker.client.post(CREATE, json={**PROMPT, "model": "nano-banana-2-lite"})
        assert live.json()["warnings"] == []
        assert "warning" not in live.headers


def test_there_are_no_warnings_before_the_dates() -> None:
    early = datetime(2026, 6, 24, tzinfo=UTC).date()
    assert [CATALOG.warnings(name, early) for model in CATALOG.models for name in model.names] == [()] * sum(
        len(model.names) for model in CATALOG.models
    )
    deprecated = CATALOG.warnings(None, datetime(2026, 9, 18, tzinfo=UTC).date())
    assert "to be shut down on 2026-10-02" in deprecated[0]


def test_every_warning_fits_into_a_header() -> None:
    late = datetime(2100, 1, 1, tzinfo=UTC).date()
    warnings = [warning for model in CATALOG.models for name in model.names for warning in CATALOG.warnings(name, late)]
    assert warnings
    assert all(text.isascii() and text.isprintable() and '"' not in text and "\\" not in text for text in warnings)


# -- rejected before money is spent


def outside(model: Model) -> Iterator[tuple[dict[str, Any], str, list[str]]]:
    """Yield fields beyond each limit of a model, the field at fault, and the values that the error must name."""
    yield {"prompt": "x" * (model.prompt_limit + 1)}, "prompt", [str(model.prompt_limit)]
    yield {"aspectRatio": "7:5"}, "aspectRatio", list(model.aspect_ratios)
    yield {"resolution": "8K"}, "resolution", list(model.resolutions)
    yield {"outputFormat": "gif"}, "outputFormat", list(model.output_formats)
    yield {"images": [DATA_URI] * (model.max_references + 1)}, "image", [str(model.max_references)]
    yield {"mode": "video"}, "mode", ["text-to-image", "image-to-image"]
    yield {"numberOfImages": 7}, "numberOfImages", ["1", "6"]


@pytest.mark.parametrize("model", CATALOG.models, ids=lambda model: model.name)
async def test_value_that_a_model_does_not_accept_is_rejected_and_leaves_nothing(tmp_path: Path, model: Model) -> None:
    async with open_api(tmp_path) as broker:
        before = await broker.stored_counts()
        for fields, field, accepted in outside(model):
            for dry in (False, True):
                order = {**PROMPT, "model": model.name, "dryRun": dry, **fields}
                answer = await broker.client.post(CREATE, json=order)
                await check_rejected(broker, f"{model.name}: {fields}", answer)
                assert (answer.status_code, answer.json()["field"]) == (400, field)
                assert all(value in answer.json()["error"] for value in accepted), answer.text
        assert await broker.stored_counts() == before


async def test_unknown_model_error_names_the_closest_and_all_models(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        answer = await broker.client.post(CREATE, json={**PROMPT, "model": "nano-bananna-pro"})
        await check_rejected(broker, "a slip", answer, "unsupported_parameter")
        assert 'Did you mean "nano-banana-pro"?' in answer.json()["error"]
        assert all(model.name in answer.json()["error"] for model in CATALOG.models)


async def test_image_too_large_for_its_model_is_rejected(tmp_path: Path) -> None:
    """Even if the operator allows more: the provider would refuse it after the order was made."""
    big = png() + b"\0" * 10_485_760
    async with open_api(tmp_path, max_file_size=30_000_000) as broker:
        for dry in ("false", "true"):
            parts = [("image", ("a.png", big, "image/png"))]
            answer = await broker.client.post(CREATE, files=parts, data={**PROMPT, "dryRun": dry})
            assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large"), answer.text
            assert "10,485,760" in answer.json()["error"]


# -- the dry run


async def test_dry_run_returns_the_total_price(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        order = {**PROMPT, "model": "nano-banana-pro", "resolution": "4K", "numberOfImages": 3}
        data = (await broker.client.post(CREATE, json={**order, "dryRun": True})).json()["data"]
        assert (data["price"], data["count"], data["total"], data["unit"]) == (24, 3, 72, "credits")
        assert data["url"] == "http://127.0.0.1:9/api/v1/jobs/createTask"
        assert data["json"]["input"]["resolution"] == "4K"
        created = (await broker.client.post(CREATE, json=order)).json()
        quote = {"price": 24, "count": 3, "total": 72, "unit": "credits"}
        quote |= {"usd": 0.36, "qualifier": "exact", "upperBoundUsd": 0.36}
        assert created["estimate"] == {**quote, "deadlineSeconds": None}
        assert {name: data[name] for name in quote} == quote
        unknown = (await broker.client.post(CREATE, json={**PROMPT, "model": "nano-banana-2-lite"})).json()
        nothing = {"price": None, "total": None, "usd": None, "qualifier": "estimate", "upperBoundUsd": None}
        assert unknown["estimate"] == {**nothing, "count": 1, "unit": "credits", "deadlineSeconds": None}


async def test_upper_bound_covers_every_attempt_that_can_be_billed(tmp_path: Path) -> None:
    async with open_api(tmp_path, resubmit_unknown=True) as broker:
        data = (await broker.client.post(CREATE, json={**PROMPT, "dryRun": True})).json()["data"]
        attempts = broker.services.policy.max_attempts
        assert (data["usd"], data["qualifier"], data["upperBoundUsd"]) == (0.02, "estimate", 0.02 * attempts)


async def test_provider_that_charges_by_use_has_no_upper_bound(tmp_path: Path) -> None:
    async with open_api(tmp_path, gemini_keys="key-of-google") as broker:
        pinned = [
            (await broker.client.post(CREATE, json={**PROMPT, "dryRun": True, "provider": name})).json()["data"]
            for name in ("kie", "gemini")
        ]
        data = (await broker.client.post(CREATE, json={**PROMPT, "dryRun": True})).json()["data"]
    assert [(one["qualifier"], one["upperBoundUsd"]) for one in pinned] == [("exact", 0.02), ("estimate", None)]
    assert (data["usd"], data["qualifier"], data["upperBoundUsd"]) == (0.02, "estimate", None)


async def test_quote_has_the_longest_deadline_of_its_candidates(tmp_path: Path) -> None:
    """An order of low priority may go on to a batch, which takes up to two days."""
    async with open_api(tmp_path, gemini_keys="key-of-google", uses_batch=True) as broker:
        order = {**PROMPT, "dryRun": True, "priority": "low"}
        data = (await broker.client.post(CREATE, json=order)).json()["data"]
    assert (data["routes"][0]["provider"], data["deadlineSeconds"]) == ("kie", 48 * 3600)


async def test_dry_run_rejects_the_same_requests_as_an_order(tmp_path: Path) -> None:
    """Also for the content of an image, and for addresses that are never requested."""
    wrong = [(name, value) for name, value, code in BAD_VALUES if code and "dry" not in name]
    wrong += [(name, value) for name, value in BAD_JSON_VALUES if "dry" not in name]
    async with open_api(tmp_path) as broker:
        before = await broker.stored_counts()
        for name, value in wrong:
            dry = await broker.client.post(CREATE, json={**PROMPT, name: value, "dryRun": True})
            wet = await broker.client.post(CREATE, json={**PROMPT, name: value})
            assert (dry.status_code, dry.json().get("code")) == (wet.status_code, wet.json().get("code")), (name, value)
        assert await broker.stored_counts() == before


async def test_dry_run_stores_no_images(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        before = await broker.stored_counts()
        half = "data:image/png;base64," + base64.b64encode(png()[:60]).decode()
        good = await broker.client.post(CREATE, json={**PROMPT, "images": [DATA_URI], "dryRun": True})
        bad = await broker.client.post(CREATE, json={**PROMPT, "images": [DATA_URI, half], "dryRun": True})
        link = await broker.client.post(
            CREATE, json={**PROMPT, "imageUrls": ["https://example.com/a.png"], "dryRun": True}
        )
        assert [answer.status_code for answer in (good, bad, link)] == [200, 400, 200]
        assert await broker.stored_counts() == before


async def test_each_provider_without_the_model_is_named_alone(tmp_path: Path) -> None:
    """In the routes of a dry run, and in the error of an order that names it; all together if none has the model."""
    async with open_api(tmp_path, providers=("kie", "replicate"), kie_keys="key", replicate_tokens="key") as broker:
        order = {**PROMPT, "model": "nano-banana-2-lite", "dryRun": True}
        data = (await broker.client.post(CREATE, json=order)).json()["data"]
        assert {route["provider"]: route["reason"] for route in data["routes"]} == {
            "kie": None,
            "replicate": "replicate does not serve nano-banana-2-lite.",
        }
        pinned = await broker.client.post(CREATE, json={**order, "provider": "replicate"})
        assert (pinned.status_code, pinned.json()["error"]) == (400, "replicate does not serve nano-banana-2-lite.")
        nowhere = await broker.client.post(CREATE, json={**order, "model": "nano-banana-2.1"})
        error = "No provider in use (kie, replicate) serves nano-banana-2.1."
        assert (nowhere.status_code, nowhere.json()["error"], nowhere.json()["field"]) == (400, error, "model")
