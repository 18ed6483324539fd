"""Reference images on kie.ai's file host, for references that kie.ai cannot fetch itself."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Final

from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_exponential

from broker.errors import ProviderError
from broker.net.api_client import FilePart
from broker.orders import Order, Reference
from broker.providers import parsing, responses
from broker.providers.kie.account import KieAccount
from broker.reports import Failed

UPLOAD_FOLDER: Final = "references"
MAX_UPLOAD_ATTEMPTS: Final = 3
MAX_RETRY_SECONDS: Final = 4.0
EXTENSIONS: Final = {"image/jpeg": "jpg", "image/png": "png", "image/webp": "webp"}


@dataclass(frozen=True, kw_only=True)
class ReferenceUploader:
    """Uploads of one account. Nothing is ordered yet, so a failure costs nothing."""

    account: KieAccount
    upload_url: str
    always_upload: bool
    retry_seconds: float

    def public_url(self, reference: Reference) -> str | None:
        """Return a URL that kie.ai can fetch, or None if the reference must be uploaded."""
        return None if self.always_upload and not reference.is_uploaded else reference.url

    async def urls_of(self, order: Order) -> list[str] | Failed:
        """Return a URL for each reference; those without one are uploaded."""
        urls: list[str] = []
        for reference in order.references:
            url = self.public_url(reference) or await self._upload_with_retries(reference)
            if isinstance(url, Failed):
                return url
            urls.append(url)
        return urls

    async def _upload_with_retries(self, reference: Reference) -> str | Failed:
        attempts = AsyncRetrying(
            stop=stop_after_attempt(MAX_UPLOAD_ATTEMPTS),
            wait=wait_exponential(multiplier=self.retry_seconds, max=MAX_RETRY_SECONDS),
            retry=retry_if_exception(lambda error: isinstance(error, ProviderError) and not error.permanent),
            reraise=True,
        )
        try:
            return await attempts(self._upload_reference, reference)
        except ProviderError as error:
            return responses.order_not_sent(error, self.account.redact)

    async def _upload_reference(self, reference: Reference) -> str | Failed:
        """Upload one reference (kie.ai: File Stream Upload).

        A reused name may go on serving the old bytes, so each name is new.
        """
        name = f"{reference.sha256[:16]}-{secrets.token_hex(8)}.{EXTENSIONS.get(reference.media_type, 'bin')}"
        file = FilePart(name="file", filename=name, media_type=reference.media_type, read=reference.read)
        url = f"{self.upload_url.rstrip('/')}/api/file-stream-upload"
        http = await self.account.post_form(url, {"uploadPath": UPLOAD_FOLDER, "fileName": name}, [file])
        response = self.account.parse(http)
        data = parsing.record_of(parsing.mapping(response.body))
        if found := parsing.first_link([data.get("downloadUrl"), data.get("fileUrl")]):
            return found
        if response.proves_refusal and response.code not in responses.DEFAULT_WAIT_SECONDS:
            return response.to_refusal(self.account.redact)
        raise self.account.error("file-stream-upload", response)
