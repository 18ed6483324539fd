"""The content of `data.json` in an export: models of all that an owner has, beside the images themselves."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from broker.presenter import Moment, ResponseModel, TaskData

FORMAT_VERSION = 1


class ExportedAccount(ResponseModel):
    """The owner: a user, or an API key without one."""

    id: str
    name: str
    email: str | None
    is_admin: bool
    created_at: Moment | None
    last_login_at: Moment | None


class ExportHead(ResponseModel):
    """The beginning of the document; the lists below follow it."""

    format_version: int
    exported_at: Moment
    account: ExportedAccount


class ExportedSession(ResponseModel):
    id: str
    kind: str
    client: Annotated[str, Field(description="User-Agent at the login")]
    address: str
    created_at: Moment
    last_seen_at: Moment
    expires_at: Moment


class ExportedKey(ResponseModel):
    id: str
    name: str
    prefix: Annotated[str, Field(description="the first characters; the key itself is not stored")]
    created_at: Moment
    last_used_at: Moment | None
    expires_at: Moment | None


class ExportedProviderKey(ResponseModel):
    provider: str
    last_four: str
    created_at: Moment


class ExportedTurn(ResponseModel):
    id: str
    number: int
    parent_id: str | None
    tasks: Annotated[list[str], Field(description="ids; the words and images of a turn are in its tasks")]
    created_at: Moment


class ExportedConversation(ResponseModel):
    id: str
    title: str
    pinned_at: Moment | None
    created_at: Moment
    updated_at: Moment
    turns: list[ExportedTurn]


class ExportedTask(TaskData):
    """A task as a poll returns it, and what its order said beside."""

    batch_id: str
    parameters: dict[str, Any]
    request: Annotated[dict[str, Any], Field(description="what the API of the order kept about it")]
    earlier_turns: list[dict[str, Any]]
    callback_url: str | None
    pinned_at: Moment | None
    files: Annotated[list[str], Field(description="results in this archive")]
    reference_files: list[str]


class ExportedBatch(ResponseModel):
    id: str
    name: str
    model: str
    callback_urls: list[str]
    metadata: dict[str, Any]
    created_at: Moment


class ExportedUpload(ResponseModel):
    id: str
    name: str
    media_type: str
    size: int
    sha256: str
    metadata: dict[str, Any]
    created_at: Moment
    file: Annotated[str, Field(description="in this archive")]


class ExportedWebhook(ResponseModel):
    id: str
    task_id: str
    type: str
    url: str
    outcome: str
    attempts: int
    created_at: Moment
    delivered_at: Moment | None


class ExportedCost(ResponseModel):
    """Attempts of one day with one model, provider and billing."""

    day: str
    model: str
    provider: str
    own_key: Annotated[bool, Field(description="with a key of the account")]
    billed: str
    attempts: int
    cost: Annotated[float, Field(description="in the provider's unit")]
    usd_estimated: float
    usd: float


class MissingFiles(ResponseModel):
    """`missing.json`: files that were deleted while the export was sent."""

    files: list[str]
