"""API keys over HTTP: the own ones, and all of them for admins."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Final, Self

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from broker.accounts.api_keys import MAX_EXPIRY_DAYS, MAX_NAME_CHARS, ApiKeyService, NewApiKey
from broker.accounts.names import MAX_RAW_CHARS
from broker.accounts.users import UserService
from broker.api.accounts.schemas import AccountRequest
from broker.api.http.endpoint import Endpoint, Parameter, SuccessResponse, json_success, principal_of
from broker.api.http.pagination import PageQuery, PageResponse, cursor_text, split_page
from broker.api.http.query import FLAG_TEXT, QueryModel
from broker.api.http.request_body import read_json_model
from broker.api.http.responses import DataResponse, data_response, json_response
from broker.errors import ApiError
from broker.presenter import Moment, ResponseModel
from broker.principal import Principal
from storage import ids
from storage.accounts.api_keys import ListedKey
from storage.accounts.users import User

MAX_BODY_BYTES: Final = 4096

_KEY: Final = Parameter("id", "path", "id or name of a key")


class ApiKeyRequest(AccountRequest):
    """A key to make."""

    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS, examples=["laptop"])]
    owner: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=MAX_RAW_CHARS,
            description="name or id of the user whose rights it has; by default the sender's, and of no user for the "
            "operator. Others' only for admins.",
        ),
    ] = None
    expires_in_days: Annotated[int | None, Field(ge=1, le=MAX_EXPIRY_DAYS, description="null: it does not")] = None


class ApiKeyListQuery(PageQuery):
    cursor: Annotated[tuple[float, str] | None, cursor_text("key")] = None


class RevocationQuery(QueryModel):
    with_data: Annotated[
        bool, FLAG_TEXT, Field(description="of a key without a user: delete everything that it has made, too")
    ] = False


class ApiKeyData(ResponseModel):
    """A key; what opens anything is shown once, when it is made."""

    id: Annotated[str, Field(pattern=f"^{ids.API_KEY_ID.pattern}$", examples=[f"key_{'0' * 24}"])]
    name: str
    prefix: Annotated[str, Field(description="the first characters of the key")]
    owner: Annotated[str | None, Field(description="name of its user; null: it belongs to none, and has its own tasks")]
    created_at: Moment
    last_used_at: Annotated[Moment | None, Field(description="to the minute; null: never used")]
    expires_at: Annotated[Moment | None, Field(description="null: never")]

    @classmethod
    def from_listed(cls, listed: ListedKey) -> Self:
        return cls.from_object(listed.key, owner=listed.owner_name)


class NewApiKeyData(ApiKeyData):
    """A key that was just made."""

    key: Annotated[str, Field(description="the key itself, which is not shown again")]

    @classmethod
    def from_new(cls, new: NewApiKey) -> Self:
        return cls.from_object(new.listed.key, owner=new.listed.owner_name, key=new.secret)


@dataclass(frozen=True, kw_only=True)
class ApiKeyRoutes:
    keys: ApiKeyService
    users: UserService
    delete_owner: Callable[[str], Awaitable[None]]
    """Deletes a key without a user, with everything that it has made."""

    def endpoints(self) -> list[Endpoint]:
        caller = partial(Endpoint, access="caller", tag="accounts")
        return [
            caller(
                "GET",
                "/api/keys",
                self.list_api_keys,
                query=ApiKeyListQuery,
                responses={200: json_success("a page", PageResponse[ApiKeyData])},
            ),
            caller(
                "POST",
                "/api/keys",
                self.add_api_key,
                request={"application/json": ApiKeyRequest},
                responses={201: json_success("the key", DataResponse[NewApiKeyData])},
                errors=("invalid_request", "payload_too_large", "not_found", "conflict"),
            ),
            caller(
                "DELETE",
                "/api/keys/{id}",
                self.revoke_api_key,
                query=RevocationQuery,
                parameters=(_KEY,),
                responses={204: SuccessResponse(text="the key opens nothing any more")},
                errors=("not_found", "conflict"),
            ),
        ]

    async def list_api_keys(self, request: Request) -> Response:
        """List your API keys, newest first.

        An admin gets those of everyone.
        """
        query, scope = ApiKeyListQuery.read(request), principal_of(request).oversight
        rows = await self.keys.list_newest(scope, limit=query.limit + 1, before=query.cursor)
        page, cursor = split_page(rows, query.limit, lambda one: (one.key.created_at, one.key.id))
        data = [ApiKeyData.from_listed(one) for one in page]
        return json_response(PageResponse[ApiKeyData](success=True, data=data, next_cursor=cursor).to_document())

    async def add_api_key(self, request: Request) -> Response:
        """Make an API key.

        It has the rights of its user, but makes no keys. One that the operator makes for no user has tasks of its own,
        and no other rights.
        """
        body = await read_json_model(request, MAX_BODY_BYTES, ApiKeyRequest)
        user = await self._owner_of(principal_of(request), body.owner)
        new = await self.keys.add(body.name, user=user, expires_days=body.expires_in_days)
        return data_response(NewApiKeyData.from_new(new), 201)

    async def revoke_api_key(self, request: Request) -> Response:
        """Revoke an API key, by its id or name.

        Requests with it are refused from now on. Its tasks stay for the retention time, unless they are deleted with it
        (`withData`); those of a key of a user are the user's.
        """
        name, scope = request.path_params["id"], principal_of(request).oversight
        if RevocationQuery.read(request).with_data:
            key = (await self.keys.find_one(name, scope)).key
            if key.owner == key.id:
                await self.delete_owner(key.id)
                return Response(status_code=204)
        await self.keys.revoke(name, scope)
        return Response(status_code=204)

    async def _owner_of(self, principal: Principal, named: str | None) -> User | None:
        """Return the user whose rights a new key gets; None for a key of its own. Raises `ApiError`."""
        if not principal.is_operator and principal.session_id is None:
            raise ApiError(
                "forbidden",
                "Log in to make an API key: an API key makes none, so that revoking it ends all that it opened.",
            )
        own = await self.users.get(principal.user_id) if principal.user_id else None
        if named is None or (own is not None and named in {own.id, own.name}):
            return own
        if not principal.is_admin:
            raise ApiError("forbidden", "Only admins make keys for others.", field="owner")
        return await (self.users.get(named) if ids.USER_ID.fullmatch(named) else self.users.get_by_name(named))
