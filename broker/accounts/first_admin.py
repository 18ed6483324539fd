"""Conditions of a start: the admin that the environment names, and no anonymous access beside users."""

from __future__ import annotations

from broker.accounts.users import UserService
from broker.errors import ApiError, SettingsError
from broker.logs import log
from broker.settings import Settings

_PASSWORD_NAMES = "BROKER_ADMIN_PASSWORD, or BROKER_ADMIN_PASSWORD_FILE with the path of a file"  # noqa: S105


async def prepare_accounts(users: UserService, settings: Settings) -> None:
    """Create the user of BROKER_ADMIN_USERNAME unless it exists. Raises `SettingsError`."""
    if settings.allow_anonymous and (settings.admin_username or await users.users.has_any()):
        raise SettingsError(
            "BROKER_ALLOW_ANONYMOUS is true, and there are users: everyone would be an admin. Remove the variable, and "
            "give programs an API key (broker keys add)"
        )
    if not settings.admin_username:
        if settings.admin_password or settings.admin_password_file:
            raise SettingsError("BROKER_ADMIN_PASSWORD is set without a name: set BROKER_ADMIN_USERNAME, too")
        return
    password = read_admin_password(settings)
    try:
        user = await users.find_by_name(settings.admin_username)
        if user is None:
            await users.add(settings.admin_username, password, is_admin=True)
        elif user.is_disabled or not user.is_admin:
            log.warning(
                "the user of BROKER_ADMIN_USERNAME exists and is no admin who can log in: run broker users add "
                "NAME --admin for another one",
                action="first_admin_is_none",
            )
    except ApiError as error:
        if error.code != "conflict":  # else another process was faster
            raise SettingsError(f"the user of BROKER_ADMIN_USERNAME cannot be created: {error.message}") from error


def read_admin_password(settings: Settings) -> str:
    """Return the password of the first admin. Raises `SettingsError` without one, or with two."""
    path = settings.admin_password_file
    if settings.admin_password is not None and path is not None:
        raise SettingsError("BROKER_ADMIN_PASSWORD and BROKER_ADMIN_PASSWORD_FILE are both set: remove one")
    if settings.admin_password is not None:
        return settings.admin_password.get_secret_value()
    if path is None:
        raise SettingsError(f"BROKER_ADMIN_USERNAME is set without a password: set {_PASSWORD_NAMES}")
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SettingsError(f"BROKER_ADMIN_PASSWORD_FILE cannot be read ({reason}): check {path}") from error
    if not lines or not lines[0]:
        raise SettingsError(f"BROKER_ADMIN_PASSWORD_FILE is empty: write the password into {path}")
    return lines[0]
