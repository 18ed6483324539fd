"""Exported callbacks: each is parsed and verified as it was when it was exported."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from broker.api.admin.callbacks import report_document
from broker.net.api_client import ApiClient
from broker.providers.base import Provider
from broker.providers.kie.signature import configure_signature
from broker.providers.registry import load_catalog
from tests.contracts.providers import PACKAGES, open_context, open_provider
from tests.support.clock import ManualClock
from webhooks import verification
from webhooks.signatures.base import Proof
from webhooks.verification import Evidence, MalformedBody

pytestmark = pytest.mark.anyio

FOLDER = Path(__file__).parent.parent / "fixtures" / "callbacks"
FILES = sorted(FOLDER.glob("*.json"))
KEY = "webhook-key-of-the-fixtures"
NO_SERVER = "http://127.0.0.1:9"


@pytest.fixture
async def providers(clock: ManualClock) -> AsyncIterator[dict[str, Provider]]:
    client = ApiClient(timeout=1.0, max_connections=1)
    settings = {"kie_keys": "k", "api_url": NO_SERVER}
    opened = {
        name: open_provider(PACKAGES[name], settings, client, load_catalog(), clock.now) for name in ("kie", "legacy")
    }
    yield opened | {"sandbox": opened["kie"]}
    await client.aclose()


def _read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def test_fixtures_cover_every_verification() -> None:
    found = {_read(path)["expected"]["verification"] for path in FILES}
    assert found == {"accept", "recheck", "reject", "unknown", "malformed"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
async def test_callback_has_the_same_outcome_as_when_exported(path: Path, providers: dict[str, Provider]) -> None:
    fixture = _read(path)
    assert _outcome(fixture, providers[fixture["provider"]]) == fixture["expected"]


def _outcome(fixture: dict[str, Any], provider: Provider) -> dict[str, Any]:
    evidence = Evidence.from_json(json.dumps(fixture["evidence"]))
    try:
        body = verification.parse_body(fixture["body"].encode())
    except MalformedBody as malformed:
        return {"names": [], "report": None, "verification": "malformed", "status": malformed.decision.status}
    decision = verification.decide(evidence)
    return {
        "names": list(provider.job_ids(body)),
        "report": report_document(provider.parse_callback(body)),
        "verification": decision.verification.value,
        "status": decision.status,
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
async def test_signature_proves_the_same_as_when_exported(path: Path) -> None:
    """Only for fixtures with a signature and a valid token: the other brokers had no webhook key."""
    fixture = _read(path)
    if "x-webhook-signature" not in fixture["headers"] or fixture["evidence"]["token"] == "wrong":
        return
    at = datetime.fromisoformat(fixture["receivedAt"]).timestamp()
    ids = tuple(fixture["expected"]["names"])
    client = ApiClient(timeout=1.0, max_connections=1)
    context = open_context(PACKAGES["kie"], {"webhook_key": KEY}, client, load_catalog(), lambda: at)
    proof = await configure_signature([context]).verify(fixture["headers"], fixture["body"].encode(), ids, at)
    assert proof == Proof(fixture["evidence"]["signature"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_fixture_contains_no_secret(path: Path) -> None:
    text = path.read_text("utf-8")
    assert "token=[hidden]" in text or "token=" not in text
    assert "authorization" not in text.lower()
