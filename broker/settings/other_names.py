"""Variables that a file of another system has, and that the broker does not read: what to write instead.

Each settings class lists the names of its own area in `other_names`. Variables in files of other systems are
answered, too.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Final, Protocol

from pydantic_settings import BaseSettings, DotEnvSettingsSource

_VARIABLE: Final = re.compile(r"([A-Z][A-Z0-9_]*)(=.*)?")
_OWN: Final = "BROKER_"


class NamesOthers(Protocol):
    """A settings class with the names that others use."""

    other_names: ClassVar[Mapping[str, str]]
    """Pattern of whole names → the variable to set instead (perhaps with `=` and an example), or a sentence."""


def set_variables(env_file: Path | None) -> set[str]:
    """Return the names of all variables that have a value, in the environment and in the file."""
    found = {name for name, value in os.environ.items() if value}
    return found if env_file is None else found | _names_in_dotenv(env_file)


def explain_unread(names: Iterable[str], kinds: Iterable[type[NamesOthers]], read: Iterable[str]) -> Iterator[str]:
    """Yield a sentence for each variable that is set under a name of another system, or misspelt.

    names: those that are set. read: those that some settings class reads. A name whose replacement is set as well is
    no trouble.
    """
    known, present, table = set(read), set(names), _table_of(kinds)
    for name in sorted(present - known):
        instead = _find_instead(name, table)
        if instead is None and name.startswith(_OWN):
            close = difflib.get_close_matches(name, known, n=1)
            instead = close[0] if close else "see .env.example for the names that are"
        if instead is None:
            continue
        variable = _VARIABLE.fullmatch(instead)
        if variable is None:
            yield f"{name} is not read: {instead}"
        elif variable[1] not in present:
            yield f"{name} is not read: set {instead} instead"


def explain_other_files(
    env_file: Path | None, names: Iterable[str], kinds: Iterable[type[NamesOthers]], read: Iterable[str]
) -> Iterator[str]:
    """Yield a sentence for each file of another system, beside the broker's own, with variables that the broker knows.

    names: those that are set elsewhere; they need no answer. The values are not looked at.
    """
    if env_file is None:
        return
    known, present, table = set(read), set(names), _table_of(kinds)
    for path, read_names in _OTHER_FILES.items():
        found = read_names(env_file.parent / path) - present
        if ours := sorted(name for name in found if name in known or _find_instead(name, table)):
            are = "is" if len(ours) == 1 else "are"
            yield f"{', '.join(ours)} in {path} {are} not read: copy to {env_file}"


def _table_of(kinds: Iterable[type[NamesOthers]]) -> dict[str, str]:
    return {pattern: instead for kind in kinds for pattern, instead in kind.other_names.items()}


def _find_instead(name: str, table: Mapping[str, str]) -> str | None:
    return next((text for pattern, text in table.items() if re.fullmatch(pattern, name)), None)


def _names_in_dotenv(path: Path) -> set[str]:
    try:
        values = DotEnvSettingsSource(BaseSettings, env_file=path, case_sensitive=True, env_ignore_empty=True).env_vars
    except (OSError, UnicodeDecodeError):  # of our own file, the second is reported with the values
        return set()
    return {name for name, value in values.items() if value}


def _names_in_toml(path: Path) -> set[str]:
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return set()
    return {name for name, value in values.items() if value and not isinstance(value, dict)}


_OTHER_FILES: Final[Mapping[str, Callable[[Path], set[str]]]] = {
    ".env.local": _names_in_dotenv,
    ".streamlit/secrets.toml": _names_in_toml,
}
"""Files in which Next.js and Streamlit keep variables → the names in one that have a value."""
