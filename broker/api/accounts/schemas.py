"""Request and response models of users and sessions.

Requests are parsed by these models and responses are built as them; the OpenAPI document reads the same classes.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import (
    AliasChoices,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from broker.accounts import names, passwords
from broker.accounts.logins import MAX_LISTED_SESSIONS
from broker.accounts.quotas import MAX_QUOTA, QUOTA_NAMES, QuotaLimit
from broker.accounts.users import UserChanges
from broker.api.http.pagination import PageQuery, cursor_text
from broker.api.http.query import ParsedText
from broker.api.http.request_body import RequestModel
from broker.api.shared.logins import PasswordText, UserNameText
from broker.api.shared.quotas import Quotas
from broker.presenter import Absent, Moment, OneOf, ResponseModel
from broker.principal import Principal
from storage import ids
from storage.accounts.sessions import Session
from storage.accounts.users import User

USER_ID: Final = f"^{ids.USER_ID.pattern}$"
SESSION_ID: Final = f"^{ids.SESSION_ID.pattern}$"

UserId = Annotated[str, Field(pattern=USER_ID, examples=[f"user_{'0' * 32}"])]
SessionId = Annotated[str, Field(pattern=SESSION_ID, examples=[f"session_{'0' * 24}"])]


# -- requests


class AccountRequest(RequestModel):
    """Base of the bodies of requests about accounts: an unknown field is an error."""

    model_config = ConfigDict(
        extra="forbid",
        alias_generator=to_camel,
        validate_by_name=False,
        validate_by_alias=True,
        frozen=True,
        strict=True,
    )


NewPassword = Annotated[SecretStr, Field(min_length=passwords.MIN_NEW_CHARS, max_length=passwords.MAX_BYTES)]
Email = Annotated[str | None, Field(max_length=names.MAX_EMAIL_CHARS, examples=["ada@example.com"])]
_Number = Annotated[int | float, Field(ge=0, le=MAX_QUOTA)]
_Whole = Annotated[int, Field(ge=0, le=MAX_QUOTA)]


def _check_quota(value: object, check: ValidatorFunctionWrapHandler) -> object:
    """Say what a limit may be, instead of what each member of the union misses."""
    try:
        return check(value)
    except ValidationError:
        raise PydanticCustomError(
            "quota", "should be a number from 0, whole but for usd, or unlimited, or null for the default"
        ) from None


_QUOTA_TEXT: Final = Field(description="null: the default of the settings; 0: none allowed")
QuotaField = Annotated[_Whole | Literal["unlimited"] | None, WrapValidator(_check_quota), _QUOTA_TEXT]
UsdQuotaField = Annotated[_Number | Literal["unlimited"] | None, WrapValidator(_check_quota), _QUOTA_TEXT]


class LoginRequest(AccountRequest):
    username: UserNameText
    password: PasswordText


class RegistrationRequest(AccountRequest):
    username: UserNameText
    password: NewPassword
    email: Email = None


class PasswordRequest(AccountRequest):
    """The password again, before something that cannot be undone."""

    password: PasswordText


class PasswordChangeRequest(AccountRequest):
    password: Annotated[PasswordText, Field(description="the present one")]
    new_password: NewPassword


class QuotaChanges(AccountRequest):
    images: QuotaField = None
    usd: UsdQuotaField = None
    in_flight: Annotated[QuotaField, Field(validation_alias=AliasChoices("inFlight", "in_flight"))] = None
    pins: QuotaField = None
    bytes: QuotaField = None


class UserRequest(AccountRequest):
    username: UserNameText
    password: NewPassword
    email: Email = None
    is_admin: bool = False
    must_change_password: Annotated[bool, Field(description="nothing else is served before")] = False


class UserChangeRequest(AccountRequest):
    """Changes of a user; fields that are not given stay as they are."""

    is_admin: bool | None = None
    is_disabled: bool | None = None
    must_change_password: bool | None = None
    password: NewPassword | None = None
    email: Annotated[Email, Field(description="empty: none")] = None
    quota: QuotaChanges | None = None

    def to_changes(self) -> UserChanges:
        return UserChanges(
            is_admin=self.is_admin,
            is_disabled=self.is_disabled,
            must_change_password=self.must_change_password,
            password=self.password.get_secret_value() if self.password else None,
            email=self.email,
            quota=self.quota.model_dump(exclude_unset=True) if self.quota else None,
        )


_USER_NAME_TEXT: Final = ParsedText(lambda text: text[: names.MAX_RAW_CHARS], {"type": "string"})


class UserListQuery(PageQuery):
    name: Annotated[str | None, _USER_NAME_TEXT, Field(description="only the user of this name")] = None
    cursor: Annotated[tuple[float, str] | None, cursor_text("user")] = None


# -- responses


class QuotaData(ResponseModel):
    """Limits that an admin set; an absent one has the default of the settings."""

    images: QuotaLimit | Absent = None
    usd: QuotaLimit | Absent = None
    in_flight: QuotaLimit | Absent = None
    pins: QuotaLimit | Absent = None
    bytes: QuotaLimit | Absent = None


class UserData(ResponseModel):
    id: UserId
    name: str
    email: str | None
    is_admin: bool
    is_disabled: bool
    must_change_password: bool
    quota: QuotaData
    created_at: Moment
    updated_at: Moment
    last_login_at: Moment | None

    @classmethod
    def from_user(cls, user: User) -> Self:
        known = {name: limit for name, limit in user.quota.items() if name in QUOTA_NAMES}
        return cls.from_object(user, quota=QuotaData(**known))


class MeData(ResponseModel):
    """The sender of a request."""

    name: str
    is_admin: bool
    user: Annotated[UserData | None, Field(description="null for the operator's keys and keys without a user")]
    session_id: Annotated[SessionId | None, Field(description="null for keys")]
    quota: Quotas

    @classmethod
    def from_principal(cls, principal: Principal, user: User | None, quota: Quotas) -> Self:
        return cls.from_object(principal, user=UserData.from_user(user) if user else None, quota=quota)


class WebhookSecretData(ResponseModel):
    secret: Annotated[
        str,
        Field(
            pattern="^whsec_[A-Za-z0-9+/]+=*$",
            description="verifies webhooks of your orders (Standard Webhooks); the webhookHmacKey of kie.ai's clients",
        ),
    ]


class SessionData(ResponseModel):
    """A login."""

    id: SessionId
    kind: Annotated[str, OneOf(("cookie", "tokens"))]
    client: Annotated[str, Field(description="User-Agent at the login")]
    address: Annotated[str, Field(description="of the client at the login")]
    is_current: Annotated[bool, Field(description="the session of this request")]
    created_at: Moment
    last_seen_at: Moment
    expires_at: Moment

    @classmethod
    def from_session(cls, session: Session, current: str | None) -> Self:
        return cls.from_object(session, is_current=session.id == current)


class SessionList(ResponseModel):
    success: Literal[True]
    data: Annotated[list[SessionData], Field(description=f"the {MAX_LISTED_SESSIONS} used last, the last one first")]


class TokensData(ResponseModel):
    """New tokens of a session that has some."""

    access_token: str
    refresh_token: str
    expires_in: Annotated[float, Field(description="seconds")]


class PasswordChangedData(ResponseModel):
    """The session that replaces the one of the request; all others have ended."""

    session_id: SessionId | None
    tokens: TokensData | Absent = None
