"""Users over HTTP, for admins: list, add, change and delete."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from broker.accounts.users import UserService
from broker.api.accounts.schemas import USER_ID, UserChangeRequest, UserData, UserListQuery, UserRequest
from broker.api.http.endpoint import Endpoint, Parameter, SuccessResponse, json_success, principal_of
from broker.api.http.pagination import PageResponse, split_page
from broker.api.http.request_body import read_json_model
from broker.api.http.responses import DataResponse, data_response, json_response
from broker.api.shared.logins import MAX_LOGIN_BYTES
from broker.errors import ApiError
from storage.accounts.users import User

_USER: Final = Parameter("id", "path", "the user's id", {"type": "string", "pattern": USER_ID})
_BODY_ERRORS: Final = ("invalid_request", "payload_too_large", "conflict")


@dataclass(frozen=True, kw_only=True)
class UserRoutes:
    users: UserService
    delete_user: Callable[[str], Awaitable[None]]
    """Deletes a user with everything that the user has made."""

    def endpoints(self) -> list[Endpoint]:
        admin = partial(Endpoint, access="admin", tag="accounts")
        single = partial(admin, path="/api/users/{id}", parameters=(_USER,))
        user = DataResponse[UserData]
        return [
            admin(
                "GET",
                "/api/users",
                self.list_users,
                query=UserListQuery,
                responses={200: json_success("a page", PageResponse[UserData])},
            ),
            admin(
                "POST",
                "/api/users",
                self.add_user,
                request={"application/json": UserRequest},
                responses={201: json_success("the user", user)},
                errors=_BODY_ERRORS,
            ),
            single(
                method="GET",
                handler=self.get_user,
                responses={200: json_success("the user", user)},
                errors=("not_found",),
            ),
            single(
                method="PATCH",
                handler=self.change_user,
                request={"application/json": UserChangeRequest},
                responses={200: json_success("the user afterwards", user)},
                errors=(*_BODY_ERRORS, "not_found"),
            ),
            single(
                method="DELETE",
                handler=self.delete_user_by_admin,
                operation_id="deleteUser",
                responses={204: SuccessResponse(text="the user is deleted")},
                errors=("not_found", "conflict"),
            ),
        ]

    async def list_users(self, request: Request) -> Response:
        """List the users, newest first."""
        query = UserListQuery.read(request)
        if query.name is not None:
            found = await self.users.find_by_name(query.name)
            rows = [found] if found else []
        else:
            rows = await self.users.list_page(before=query.cursor, limit=query.limit + 1)
        page, cursor = split_page(rows, query.limit, _position)
        data = [UserData.from_user(user) for user in page]
        return json_response(PageResponse[UserData](success=True, data=data, next_cursor=cursor).to_document())

    async def add_user(self, request: Request) -> Response:
        """Add a user."""
        body = await read_json_model(request, MAX_LOGIN_BYTES, UserRequest)
        user = await self.users.add(
            body.username,
            body.password.get_secret_value(),
            email=body.email,
            is_admin=body.is_admin,
            must_change_password=body.must_change_password,
        )
        return data_response(UserData.from_user(user), 201)

    async def get_user(self, request: Request) -> Response:
        """Get a user."""
        return data_response(UserData.from_user(await self.users.get(request.path_params["id"])))

    async def change_user(self, request: Request) -> Response:
        """Change a user: rights, password, quota; disable and enable.

        A new password, new rights and disabling end all sessions of the user. Admins cannot take their own rights away.
        """
        user_id = request.path_params["id"]
        changes = (await read_json_model(request, MAX_LOGIN_BYTES, UserChangeRequest)).to_changes()
        if user_id == principal_of(request).user_id and (changes.is_disabled or changes.is_admin is False):
            raise ApiError("conflict", "This is your own account: another admin can disable it or take its rights.")
        return data_response(UserData.from_user(await self.users.change(user_id, changes)))

    async def delete_user_by_admin(self, request: Request) -> Response:
        """Delete a user with everything that the user has made.

        This cannot be undone.
        """
        user_id = request.path_params["id"]
        if user_id == principal_of(request).user_id:
            raise ApiError("conflict", "This is your own account: DELETE /api/me deletes it.")
        await self.delete_user(user_id)
        return Response(status_code=204)


def _position(user: User) -> tuple[float, str]:
    return user.created_at, user.id
