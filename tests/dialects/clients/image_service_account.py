"""A client of the image service with an account: the steps of its documentation, from the registration on."""

from __future__ import annotations

import base64
import secrets
import time
from typing import Any

import httpx

POLL_SECONDS = 0.05
PASSWORD = "password123"


def complete_flow(base_url: str, image: bytes) -> list[bytes]:
    """Order from a text and, after a refresh, from an image; return the images."""
    with httpx.Client(base_url=f"{base_url}/api/v1", timeout=30) as client:
        name = f"user{secrets.token_hex(4)}"
        account = {"username": name, "email": f"{name}@example.com", "password": PASSWORD}
        tokens = _post(client, "/auth/register", json=account)
        client.headers["Authorization"] = f"Bearer {tokens['access_token']}"
        me = client.get("/auth/me").raise_for_status().json()
        assert (me["username"], me["email"], me["is_active"]) == (name, account["email"], True)

        _try_placeholder_key(client)
        landscape = {"resolution": "1K", "aspect_ratio": "16:9", "generation_mode": "text-to-image"}
        first = _generate(client, prompt="a beautiful landscape", **landscape)
        tokens = _post(client, "/auth/refresh", json={"refresh_token": tokens["refresh_token"]})
        client.headers["Authorization"] = f"Bearer {tokens['access_token']}"
        reference = f"data:image/png;base64,{base64.b64encode(image).decode()}"
        second = _generate(
            client, prompt="the same at night", generation_mode="image-to-image", reference_images=[reference]
        )
        made = [client.get(one["result_url"]).raise_for_status().content for one in (first, second)]

        tokens = _post(client, "/auth/login", json={"username_or_email": name, "password": PASSWORD})
        client.headers["Authorization"] = f"{tokens['token_type'].title()} {tokens['access_token']}"
        listed = client.get("/images/list").raise_for_status().json()["generations"]
        assert [one["id"] for one in listed] == [second["id"], first["id"]]
        for one in listed:
            client.delete(f"/images/{one['id']}").raise_for_status()
        assert client.get("/images/list").raise_for_status().json()["generations"] == []
    return made


def _try_placeholder_key(client: httpx.Client) -> None:
    """Set the key as the documentation has it. It is none, and orders go on with the operator's."""
    refused = client.put("/users/api-key", json={"api_key": "your_replicate_api_key"})
    assert (refused.status_code, list(refused.json())) == (400, ["detail"]), refused.text
    assert client.get("/users/api-key").raise_for_status().json()["has_key"] is False
    assert client.delete("/users/api-key").raise_for_status().json()["has_key"] is False


def _generate(client: httpx.Client, **order: Any) -> dict[str, Any]:
    """Order an image and poll until it is there."""
    image_id = _post(client, "/images/generate", json=order)["image_id"]
    for _ in range(int(60 / POLL_SECONDS)):
        image: dict[str, Any] = client.get(f"/images/status/{image_id}").raise_for_status().json()
        if image["status"] == "completed":
            return image
        if image["status"] == "failed":
            raise RuntimeError(image["error_message"])
        time.sleep(POLL_SECONDS)
    raise TimeoutError


def _post(client: httpx.Client, path: str, **body: Any) -> Any:
    answer = client.post(path, **body)
    assert answer.is_success, (path, answer.status_code, answer.text)
    return answer.json()
