"""The catalog: every name finds its model, and what a model does not do is refused before money is spent."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.catalog import Catalog
from broker.errors import ApiError
from broker.ordering.plan import validate_params
from broker.orders import ImageParams, Order
from broker.providers.registry import load_catalog

CATALOG = load_catalog()
NAMES = {
    "nano-banana": ["gemini-2.5-flash-image", "gemini-2.5-flash-image-preview", "google/nano-banana-edit"],
    "nano-banana-pro": ["gemini-3-pro-image", "gemini-3-pro-image-preview", "google/nano-banana-pro"],
    "nano-banana-2": ["gemini-3.1-flash-image", "gemini-3.1-flash-image-preview", "google/nano-banana-2"],
    "nano-banana-2-lite": ["gemini-3.1-flash-lite-image", "google/nano-banana-2-lite"],
}


def validate(*, mode: str | None = None, references: int = 0, **params: Any) -> Order:
    return validate_params(CATALOG, ImageParams(**{"prompt": "x", **params}), mode=mode, references=references)


def refused(**params: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        validate(**params)
    return caught.value


@pytest.mark.parametrize(("canonical", "written"), [(name, alias) for name, all_ in NAMES.items() for alias in all_])
def test_every_name_finds_its_model(canonical: str, written: str) -> None:
    """People write Google's ids, kie.ai's, with prefix and without; all of them are right."""
    assert CATALOG.resolve(written).name == canonical
    assert CATALOG.resolve(f" models/{written.upper()} ").name == canonical
    assert CATALOG.resolve(canonical.replace("-", " ").title()).name == canonical


@pytest.mark.parametrize("nothing", [None, "", "  "])
def test_no_model_means_the_default(nothing: str | None) -> None:
    assert CATALOG.resolve(nothing).name == "nano-banana"


def test_an_unknown_model_is_refused_with_a_hint() -> None:
    refusal = refused(model="nano-bananna-pro")
    assert (refusal.code, refusal.field, refusal.status) == ("unsupported_parameter", "model", 400)
    assert 'Did you mean "nano-banana-pro"?' in refusal.message
    assert "nano-banana-2-lite" in refusal.message


def test_an_unknown_model_is_quoted_short_and_harmless() -> None:
    refusal = refused(model="\x1b[31m" + "x" * 5000)
    assert len(refusal.message) < 300
    assert refusal.message.isprintable()


@pytest.mark.parametrize("prompt", ["", "  \n\t ", "\u200b\u200b", "\u2060"])
def test_invisible_prompt_is_empty(prompt: str) -> None:
    refusal = refused(prompt=prompt)
    assert (refusal.code, refusal.field) == ("invalid_prompt", "prompt")


@pytest.mark.parametrize(
    ("model", "limit"),
    [("nano-banana", 5000), ("nano-banana-pro", 10_000), ("nano-banana-2", 20_000), ("nano-banana-2-lite", 20_000)],
)
def test_a_prompt_is_measured_in_characters(model: str, limit: int) -> None:
    validate(prompt="画" * limit, model=model)
    refusal = refused(prompt="画" * (limit + 1), model=model)
    assert refusal.code == "invalid_prompt"
    assert str(limit) in refusal.message


@pytest.mark.parametrize("strange", ["a\0b", "a\x1bb", "a\x85b", "a\ud800b"])
def test_a_prompt_with_characters_that_no_text_has_is_refused(strange: str) -> None:
    """A lone surrogate cannot even be sent."""
    assert refused(prompt=strange).code == "invalid_prompt"


def test_a_prompt_with_lines_and_emoji_is_fine() -> None:
    validate(prompt="line one\r\nline\ttwo 👩‍🎨 Привет")


@pytest.mark.parametrize(
    ("mode", "references", "meant"),
    [
        (None, 0, "text-to-image"),
        (None, 1, "image-to-image"),
        ("", 0, "text-to-image"),
        ("text-to-image", 0, "text-to-image"),
        ("image-to-image", 2, "image-to-image"),
    ],
)
def test_the_mode_follows_the_images(mode: str | None, references: int, meant: str) -> None:
    assert validate(prompt="x", mode=mode, references=references).mode == meant


@pytest.mark.parametrize(
    ("mode", "references", "code", "field"),
    [
        ("image-to-image", 0, "invalid_request", "image"),
        ("text-to-image", 1, "invalid_request", "mode"),
        ("video", 0, "unsupported_parameter", "mode"),
    ],
)
def test_a_mode_that_contradicts_the_images_is_refused(mode: str, references: int, code: str, field: str) -> None:
    refusal = refused(mode=mode, references=references)
    assert (refusal.code, refusal.field, refusal.status) == (code, field, 400)


@pytest.mark.parametrize(
    ("model", "most"), [("nano-banana", 10), ("nano-banana-pro", 8), ("nano-banana-2", 14), ("nano-banana-2-lite", 10)]
)
def test_each_model_takes_so_many_images(model: str, most: int) -> None:
    validate(prompt="x", model=model, references=most)
    refusal = refused(model=model, references=most + 1)
    assert (refusal.code, refusal.field) == ("too_many_images", "image")
    assert f"at most {most}" in refusal.message


@pytest.mark.parametrize("ratio", ["1:1", "9:16", "16:9", "3:4", "4:3", "3:2", "2:3", "5:4", "4:5", "21:9", "auto"])
@pytest.mark.parametrize("model", NAMES)
def test_the_eleven_ratios_work_everywhere(model: str, ratio: str) -> None:
    assert validate(prompt="x", model=model, aspect_ratio=ratio).params.aspect_ratio == ratio


@pytest.mark.parametrize(
    ("wish", "field", "accepted"),
    [
        ({"aspect_ratio": "8:1"}, "aspectRatio", "21:9"),
        ({"aspect_ratio": "16x9"}, "aspectRatio", "16:9"),
        ({"resolution": "2K"}, "resolution", "1K"),
        ({"resolution": "4K", "model": "nano-banana-2-lite"}, "resolution", "1K"),
        ({"resolution": "8K", "model": "nano-banana-pro"}, "resolution", "1K, 2K, 4K"),
        ({"output_format": "gif"}, "outputFormat", "png, jpg"),
    ],
)
def test_what_a_model_cannot_do_is_refused_with_what_it_can(wish: dict[str, str], field: str, accepted: str) -> None:
    refusal = refused(**wish)
    assert (refusal.code, refusal.field) == ("unsupported_parameter", field)
    assert accepted in refusal.message


def test_other_spellings_of_a_choice_are_understood() -> None:
    """Front ends send empty fields, `2k` and `jpeg`."""
    order = validate(prompt="x", model="nano-banana-2", aspect_ratio="", resolution="2k", output_format="jpeg", mode="")
    params = ImageParams(prompt="x", model="nano-banana-2", resolution="2K", output_format="jpg")
    assert order == Order(params=params, mode="text-to-image")


def test_everything_wrong_is_said_at_once() -> None:
    refusal = refused(prompt="", model="sora", mode="video", aspect_ratio="7:5", references=99)
    fields = [complaint.field for complaint in refusal.details]
    assert fields == ["prompt", "model", "mode", "image", "aspectRatio"]
    assert (refusal.code, refusal.field, refusal.message) == ("invalid_prompt", "prompt", refusal.details[0].message)


@given(prompt=st.text(), model=st.none() | st.text(), ratio=st.none() | st.text(), size=st.none() | st.text())
def test_a_request_is_good_or_refused(prompt: str, model: str | None, ratio: str | None, size: str | None) -> None:
    try:
        validate(prompt=prompt, model=model or "", aspect_ratio=ratio, resolution=size)
    except ApiError as refusal:
        refusal.message.encode()


@pytest.mark.parametrize(
    ("model", "mode", "resolution", "price"),
    [
        ("nano-banana", "text-to-image", None, 4),
        ("nano-banana", "image-to-image", "1K", 4),
        ("nano-banana-pro", "text-to-image", None, 18),
        ("nano-banana-pro", "text-to-image", "4K", 24),
        ("nano-banana-2", "image-to-image", "2K", 12),
        ("nano-banana-2-lite", "text-to-image", None, None),
    ],
)
def test_prices_are_known_before_ordering(model: str, mode: Any, resolution: str | None, price: float | None) -> None:
    assert CATALOG.price("kie", model, mode, resolution) == price


def test_what_a_provider_cannot_use_is_named_as_the_caller_wrote_it() -> None:
    order = Order(
        params=ImageParams(
            prompt="x",
            model="nano-banana-2-lite",
            aspect_ratio="1:1",
            resolution="1K",
            output_format="png",
            steps=30,
            seed=1,
        ),
        mode="text-to-image",
    )
    assert CATALOG.ignored("kie", order) == ("outputFormat", "steps", "seed")


def test_a_model_outlives_its_vendors_dates() -> None:
    model = CATALOG.resolve("nano-banana")
    days = [date(2026, 9, 17), date(2026, 9, 18), date(2026, 10, 1), date(2026, 10, 2)]
    assert [model.status(day) for day in days] == ["live", "deprecated", "deprecated", "retired"]
    assert CATALOG.resolve("nano-banana-pro").status(date(2030, 1, 1)) == "live"


BROKEN = """
default = "a"
[[models]]
name = "a"
title = "A"
google = "g"
aliases = []
prompt_limit = 10
aspect_ratios = ["1:1"]
resolutions = ["1K"]
output_formats = ["png"]
max_references = 1
max_reference_bytes = 1
"""


@pytest.mark.parametrize(
    "wire",
    [
        "[models.a]\nmodel = 'x'",
        "[models.a]\nreferences = 'r'\nformat = 'f'\nformats = { jpg = 'jpeg' }",
        "[models.a]\nreferences = 'r'\nprices = { 8K = 4 }",
        "[models.a]\nreferences = 'r'\nrefrences = 'r'",
        "[models.a.text-to-image]\nmodel = 5",
        "[models.b]\nreferences = 'r'",
        "concurrency = 0\n[models.a]\nreferences = 'r'",
    ],
)
def test_contradictory_provider_catalog_stops_the_start(wire: str) -> None:
    with pytest.raises(ValueError, match=r"catalog: a, kie|catalog of kie|validation error"):
        Catalog.load(BROKEN, providers={"kie": wire})


@pytest.mark.parametrize(
    ("more", "prices", "cure"),
    [
        ("shutdown_on = 2026-10-02", "", "instead must name"),
        ("deprecated_on = 2026-10-02\ninstead = 'b'", "", "instead must name"),
        ("", "prices = { 1K = 4 }", "unit must say"),
    ],
)
def test_missing_target_of_a_reference_stops_the_start(more: str, prices: str, cure: str) -> None:
    with pytest.raises(ValueError, match=cure):
        Catalog.load(f"{BROKEN}{more}", providers={"kie": f"[models.a]\nreferences = 'r'\n{prices}"})


def test_modes_of_equal_price_are_one_offer() -> None:
    wires = """
        unit = "credits"
        [models.a]
        references = 'r'
        prices = { 1K = 4 }
        [models.a.text-to-image]
        [models.a.image-to-image]
        prices = { 1K = 8 }
    """
    catalog = Catalog.load(BROKEN, providers={"kie": wires})
    offers = [(offer.modes, dict(offer.prices)) for offer in catalog.offers(catalog.default)]
    assert offers == [(("text-to-image",), {"1K": 4}), (("image-to-image",), {"1K": 8})]
    (one,) = CATALOG.offers(CATALOG.resolve("nano-banana-pro"))
    assert (one.modes, one.unit) == (("text-to-image", "image-to-image"), "credits")


def test_name_of_two_models_stops_the_start() -> None:
    second = BROKEN.replace('default = "a"', "").replace('name = "a"', 'name = "b"')
    with pytest.raises(ValueError, match="names both a and b"):
        Catalog.load(f"{BROKEN}\n{second}")
