"""The manifest by which an image studio of the browser adds the broker: a custom provider, and a profile per model.

The shape is that of gpt_image_playground (CookSleep), docs/custom-provider-llm-prompt.md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from broker.api.http.addresses import own_base_url
from broker.api.http.endpoint import Endpoint, json_success
from broker.api.http.responses import json_response
from broker.callbacks.public_url import PublicAddress
from broker.catalog import Model

PROVIDER: Final = "custom-nano-banana-broker"
_POLL_SECONDS: Final = 3
_BODY: Final = {
    "model": "$profile.model",
    "prompt": "$prompt",
    "size": "$params.size",
    "quality": "$params.quality",
    "output_format": "$params.output_format",
    "n": "$params.n",
}


@dataclass(frozen=True, kw_only=True)
class ManifestRoute:
    models: Sequence[Model]
    """Those that a provider in use serves."""
    default: Model
    address: PublicAddress

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint(
                "GET",
                "/v1/images/manifest.json",
                self.get_studio_manifest,
                access="caller",
                tag="OpenAI",
                responses={200: json_success("the manifest", {"type": "object"})},
            )
        ]

    async def get_studio_manifest(self, request: Request) -> Response:
        """Get the manifest by which an image studio adds this broker.

        It contains no key. `importQuery` is the same as the query of a link to the studio.
        """
        return json_response(self.build_manifest(f"{own_base_url(request, self.address.base)}/v1"))

    def build_manifest(self, base_url: str) -> dict[str, Any]:
        ordered = sorted(self.models, key=lambda model: model != self.default)
        profiles: list[dict[str, Any]] = [
            {
                "id": f"{PROVIDER}-{model.name}",
                "name": model.title,
                "provider": PROVIDER,
                "baseUrl": base_url,
                "model": model.name,
                "apiMode": "images",
                "transparentBackgroundMethod": "local",
            }
            for model in ordered
        ]
        if len(profiles) > 1:
            profiles[0] = {**profiles[0], "isDefault": True}
        manifest = {"customProviders": [_provider()], "profiles": profiles}
        return {**manifest, "importQuery": f"?{urlencode({'settings': json.dumps(manifest)})}"}


def _provider() -> dict[str, Any]:
    submit = {"method": "POST", "taskIdPath": "task_id", "body": _BODY}
    return {
        "id": PROVIDER,
        "name": "Nano Banana broker",
        "submit": {"path": "images/generations/async", "contentType": "json", **submit},
        "editSubmit": {
            "path": "images/edits/async",
            "contentType": "multipart",
            "files": [{"field": "image[]", "source": "inputImages", "array": True}],
            **submit,
        },
        "poll": {
            "path": "images/tasks/{task_id}",
            "method": "GET",
            "intervalSeconds": _POLL_SECONDS,
            "statusPath": "status",
            "successValues": ["completed"],
            "failureValues": ["failed"],
            "errorPath": "error.message",
            "result": {"imageUrlPaths": ["result.data.*.url"], "b64JsonPaths": []},
        },
    }
