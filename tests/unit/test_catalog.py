"""The catalog and the validation of requests against it."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.catalog import Catalog
from broker.errors import ApiError
from broker.ordering.offers import combine_limits, list_offers
from broker.ordering.plan import validate_params
from broker.orders import ImageParams, Order
from broker.providers.registry import PROVIDERS, load_catalog

CATALOG = load_catalog()
PACKAGES = {package.name: package for package in PROVIDERS}
NAMES = {
    "nano-banana": ["gemini-2.5-flash-image", "gemini-2.5-flash-image-preview", "google/nano-banana-edit"],
    "nano-banana-pro": ["gemini-3-pro-image", "gemini-3-pro-image-preview", "google/nano-banana-pro"],
    "nano-banana-2": ["gemini-3.1-flash-image", "gemini-3.1-flash-image-preview", "google/nano-banana-2"],
    "nano-banana-2-lite": ["gemini-3.1-flash-lite-image", "google/nano-banana-2-lite"],
    "nano-banana-2.1": ["gemini-nano-banana-2.1", "google/nano-banana-2.1"],
}


def validate(*, mode: str | None = None, references: int = 0, **params: Any) -> Order:
    return validate_params(CATALOG, ImageParams(**{"prompt": "x", **params}), mode=mode, references=references)


def validation_error(**params: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        validate(**params)
    return caught.value


@pytest.mark.parametrize(("canonical", "written"), [(name, alias) for name, all_ in NAMES.items() for alias in all_])
def test_every_name_resolves_to_its_model(canonical: str, written: str) -> None:
    """Callers send Google's ids and kie.ai's, with and without prefix."""
    assert CATALOG.resolve(written).name == canonical
    assert CATALOG.resolve(f" models/{written.upper()} ").name == canonical
    assert CATALOG.resolve(canonical.replace("-", " ").title()).name == canonical


@pytest.mark.parametrize("nothing", [None, "", "  "])
def test_absent_model_is_the_default(nothing: str | None) -> None:
    assert CATALOG.resolve(nothing).name == "nano-banana"


def test_unknown_model_is_rejected_with_a_suggestion() -> None:
    error = validation_error(model="nano-bananna-pro")
    assert (error.code, error.field, error.status) == ("unsupported_parameter", "model", 400)
    assert 'Did you mean "nano-banana-pro"?' in error.message
    assert "nano-banana-2-lite" in error.message


def test_unknown_model_is_quoted_short_and_printable() -> None:
    error = validation_error(model="\x1b[31m" + "x" * 5000)
    assert len(error.message) < 300
    assert error.message.isprintable()


@pytest.mark.parametrize("prompt", ["", "  \n\t ", "\u200b\u200b", "\u2060"])
def test_invisible_prompt_is_empty(prompt: str) -> None:
    error = validation_error(prompt=prompt)
    assert (error.code, error.field) == ("invalid_prompt", "prompt")


@pytest.mark.parametrize(
    ("model", "limit"),
    [("nano-banana", 5000), ("nano-banana-pro", 10_000), ("nano-banana-2", 20_000), ("nano-banana-2-lite", 20_000)],
)
def test_prompt_limit_counts_characters(model: str, limit: int) -> None:
    validate(prompt="画" * limit, model=model)
    error = validation_error(prompt="画" * (limit + 1), model=model)
    assert error.code == "invalid_prompt"
    assert str(limit) in error.message


@pytest.mark.parametrize("strange", ["a\0b", "a\x1bb", "a\x85b", "a\ud800b"])
def test_prompt_with_control_characters_is_rejected(strange: str) -> None:
    """A lone surrogate cannot even be sent."""
    assert validation_error(prompt=strange).code == "invalid_prompt"


def test_prompt_with_lines_and_emoji_is_accepted() -> None:
    validate(prompt="line one\r\nline\ttwo 👩‍🎨 Привет")


@pytest.mark.parametrize(
    ("mode", "references", "expected"),
    [
        (None, 0, "text-to-image"),
        (None, 1, "image-to-image"),
        ("", 0, "text-to-image"),
        ("text-to-image", 0, "text-to-image"),
        ("image-to-image", 2, "image-to-image"),
    ],
)
def test_mode_follows_from_the_images(mode: str | None, references: int, expected: str) -> None:
    assert validate(prompt="x", mode=mode, references=references).mode == expected


@pytest.mark.parametrize(
    ("mode", "references", "code", "field"),
    [
        ("image-to-image", 0, "invalid_request", "image"),
        ("text-to-image", 1, "invalid_request", "mode"),
        ("video", 0, "unsupported_parameter", "mode"),
    ],
)
def test_mode_that_contradicts_the_images_is_rejected(mode: str, references: int, code: str, field: str) -> None:
    error = validation_error(mode=mode, references=references)
    assert (error.code, error.field, error.status) == (code, field, 400)


@pytest.mark.parametrize(
    ("model", "most"), [("nano-banana", 10), ("nano-banana-pro", 14), ("nano-banana-2", 14), ("nano-banana-2-lite", 10)]
)
def test_number_of_references_is_limited_per_model(model: str, most: int) -> None:
    validate(prompt="x", model=model, references=most)
    error = validation_error(model=model, references=most + 1)
    assert (error.code, error.field) == ("too_many_images", "image")
    assert f"at most {most}" in error.message


@pytest.mark.parametrize("ratio", ["1:1", "9:16", "16:9", "3:4", "4:3", "3:2", "2:3", "5:4", "4:5", "21:9", "auto"])
@pytest.mark.parametrize("model", NAMES)
def test_every_model_accepts_the_eleven_ratios(model: str, ratio: str) -> None:
    assert validate(prompt="x", model=model, aspect_ratio=ratio).params.aspect_ratio == ratio


@pytest.mark.parametrize(
    ("params", "field", "accepted"),
    [
        ({"aspect_ratio": "8:1"}, "aspectRatio", "21:9"),
        ({"aspect_ratio": "16x9"}, "aspectRatio", "16:9"),
        ({"resolution": "2K"}, "resolution", "1K"),
        ({"resolution": "4K", "model": "nano-banana-2-lite"}, "resolution", "1K"),
        ({"resolution": "8K", "model": "nano-banana-pro"}, "resolution", "1K, 2K, 4K"),
        ({"output_format": "gif"}, "outputFormat", "png, jpg"),
    ],
)
def test_unsupported_value_is_rejected_with_the_accepted_ones(
    params: dict[str, str], field: str, accepted: str
) -> None:
    error = validation_error(**params)
    assert (error.code, error.field) == ("unsupported_parameter", field)
    assert accepted in error.message


def test_other_spellings_of_a_choice_are_accepted() -> None:
    """Front ends send empty fields, `2k` and `jpeg`."""
    order = validate(prompt="x", model="nano-banana-2", aspect_ratio="", resolution="2k", output_format="jpeg", mode="")
    params = ImageParams(prompt="x", model="nano-banana-2", resolution="2K", output_format="jpg")
    assert order == Order(params=params, mode="text-to-image")


def test_all_errors_are_reported_at_once() -> None:
    error = validation_error(prompt="", model="sora", mode="video", aspect_ratio="7:5", references=99)
    fields = [one.field for one in error.details]
    assert fields == ["prompt", "model", "mode", "image", "aspectRatio"]
    assert (error.code, error.field, error.message) == ("invalid_prompt", "prompt", error.details[0].message)


@given(prompt=st.text(), model=st.none() | st.text(), ratio=st.none() | st.text(), size=st.none() | st.text())
def test_any_request_is_valid_or_an_api_error(
    prompt: str, model: str | None, ratio: str | None, size: str | None
) -> None:
    try:
        validate(prompt=prompt, model=model or "", aspect_ratio=ratio, resolution=size)
    except ApiError as error:
        error.message.encode()


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


def test_ignored_parameters_have_their_native_names() -> None:
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


PIXELS = {
    (
        "nano-banana",
        "1K",
    ): """1:1 1024x1024 · 16:9 1344x768 · 9:16 768x1344 · 4:3 1184x864 · 3:4 864x1184 · 3:2 1248x832 ·
        2:3 832x1248""",
    ("nano-banana-pro", "1K"): "1:1 1024x1024 · 16:9 1376x768 · 9:16 768x1376 · 4:3 1200x896 · 3:4 896x1200",
    ("nano-banana-pro", "2K"): "1:1 2048x2048 · 16:9 2752x1536 · 9:16 1536x2752 · 4:3 2400x1792 · 3:4 1792x2400",
    ("nano-banana-pro", "4K"): "1:1 4096x4096 · 16:9 5504x3072 · 9:16 3072x5504 · 4:3 4800x3584 · 3:4 3584x4800",
}
"""As existing users of the Gemini API know them."""


@pytest.mark.parametrize(("name", "resolution"), PIXELS)
def test_pixel_sizes_are_those_of_the_gemini_api(name: str, resolution: str) -> None:
    model = CATALOG.resolve(name)
    for ratio, size in (entry.split() for entry in PIXELS[name, resolution].split("·")):
        assert "{}x{}".format(*model.pixel_size(ratio, resolution) or ()) == size


def test_every_ratio_of_a_model_has_a_size_at_every_resolution() -> None:
    for model in CATALOG.models:
        assert model.output_tokens.keys() <= set(model.resolutions)
        for resolution in model.resolutions:
            for ratio in model.aspect_ratios:
                size = model.pixel_size(ratio, resolution)
                assert (size is None) == (ratio == "auto"), (model.name, ratio)
                if size is not None:
                    width, height = map(int, ratio.split(":"))
                    assert size.width / size.height == pytest.approx(width / height, rel=0.07)


def test_tokens_of_an_image_are_those_of_the_gemini_api() -> None:
    """Where Google bills by tokens, its price of an image is theirs."""
    assert CATALOG.resolve("nano-banana").output_tokens == {"1K": 1290}
    assert CATALOG.resolve("nano-banana-pro").output_tokens == {"1K": 1120, "2K": 1120, "4K": 2000}
    for model in CATALOG.models:
        wire = CATALOG.wire("gemini", model.name, "text-to-image")
        for resolution, tokens in model.output_tokens.items():
            if wire is None:
                continue
            price = wire.token_prices["image"] * tokens / 1e6
            assert wire.prices[resolution] == pytest.approx(price, rel=0.01), (model.name, resolution)


def test_model_decides_the_size_without_a_ratio() -> None:
    assert CATALOG.pixel_size("nano-banana-pro", None, "2K") is None
    assert CATALOG.pixel_size("nano-banana-pro", "1:1", None) == (1024, 1024)
    assert CATALOG.pixel_size("a model of yesterday", "1:1", None) is None


def test_status_follows_the_dates_of_the_vendor() -> None:
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


def test_unknown_table_of_image_sizes_stops_the_start() -> None:
    with pytest.raises(ValueError, match="image_sizes"):
        Catalog.load(f"{BROKEN}image_sizes = 'gemini-9'", providers={"kie": "[models.a]\nreferences = 'r'"})


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
    offers = [(offer.modes, dict(offer.prices)) for offer in list_offers(catalog, catalog.default)]
    assert offers == [(("text-to-image",), {"1K": 4}), (("image-to-image",), {"1K": 8})]
    (one,) = [offer for offer in list_offers(CATALOG, CATALOG.resolve("nano-banana-pro")) if offer.provider == "kie"]
    assert (one.modes, one.unit) == (("text-to-image", "image-to-image"), "credits")


def test_limits_of_the_providers_in_use_are_combined() -> None:
    """What one of them accepts is accepted: the order goes there."""
    narrow = """
        [models.nano-banana-pro]
        ratio = "shape"
        aspect_ratios = ["1:1", "16:9"]
        resolution = "size"
        resolutions = { 1K = "small" }
        references = "images"
        max_references = 3
        prompt_limit = 500
    """
    fixed = """
        [models.nano-banana-pro]
        ratio = "shape"
        aspect_ratios = ["auto", "1:1"]
        references = "images"
    """
    catalog = Catalog.load(providers={"narrow": narrow, "fixed": fixed})
    model = catalog.resolve("nano-banana-pro")
    first, second = list_offers(catalog, model)
    assert (first.limits.aspect_ratios, first.limits.resolutions) == (("1:1", "16:9"), ("1K",))
    assert (first.limits.output_formats, first.limits.prompt_limit, first.max_references) == ((), 500, 3)
    assert (second.limits.resolutions, second.max_references) == (("1K",), 14)
    both = combine_limits(model, [first, second])
    assert both.aspect_ratios == ("1:1", "16:9", "auto")
    assert (both.resolutions, both.prompt_limit) == (("1K",), 10_000)
    assert combine_limits(model, []).resolutions == ("1K", "2K", "4K")


@pytest.mark.parametrize("value", ["true", "false"])
def test_disabled_entry_is_not_served(value: str) -> None:
    catalog = Catalog.load(BROKEN, providers={"kie": f"[models.a]\nreferences = 'r'\nenabled = {value}"})
    assert catalog.serves("kie", "a") == (value == "true")
    assert (catalog.wire("kie", "a", "text-to-image") is not None) == (value == "true")
    assert len(list_offers(catalog, catalog.default)) == (value == "true")


def test_mode_can_be_disabled() -> None:
    wires = "[models.a]\nreferences = 'r'\n[models.a.text-to-image]\n[models.a.image-to-image]\nenabled = false"
    catalog = Catalog.load(BROKEN, providers={"kie": wires})
    (offer,) = list_offers(catalog, catalog.default)
    assert offer.modes == ("text-to-image",)


def test_disabled_entry_is_checked() -> None:
    with pytest.raises(ValueError, match="refrences"):
        Catalog.load(BROKEN, providers={"kie": "[models.a]\nenabled = false\nrefrences = 'r'"})


def test_one_line_enables_nano_banana_2_1_at_kie() -> None:
    """Its id there was not seen, so the entry is disabled as shipped."""
    assert not CATALOG.serves("kie", "nano-banana-2.1")
    text = PACKAGES["kie"].catalog.read_text("utf-8")
    (line,) = [line for line in text.splitlines() if line.startswith("enabled = false")]
    catalog = Catalog.load(providers={"kie": text.replace(line, "enabled = true")})
    wire = catalog.wire("kie", "nano-banana-2.1", "image-to-image")
    assert wire is not None
    params = ImageParams(prompt="x", model="nano-banana-2.1", aspect_ratio="16:9", resolution="2K", output_format="jpg")
    assert wire.spell(Order(params=params, mode="image-to-image"), ["https://a.example/1.png"]) == {
        "prompt": "x",
        "aspect_ratio": "16:9",
        "resolution": "2K",
        "output_format": "jpg",
        "image_input": ["https://a.example/1.png"],
    }


def test_name_of_two_models_stops_the_start() -> None:
    second = BROKEN.replace('default = "a"', "").replace('name = "a"', 'name = "b"')
    with pytest.raises(ValueError, match="names both a and b"):
        Catalog.load(f"{BROKEN}\n{second}")
