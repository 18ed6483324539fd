"""Variables that a file of another system has, and that the broker does not read: what to write instead.

Each settings class lists the names of its own area in `other_names`.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
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
    if env_file is not None:
        source = DotEnvSettingsSource(BaseSettings, env_file=env_file, case_sensitive=True, env_ignore_empty=True)
        found |= {name for name, value in source.env_vars.items() if value}
    return found


def explain_unread(names: Iterable[str], kinds: Iterable[type[NamesOthers]], read: Iterable[str]) -> Iterator[str]:
    """Yield a sentence for each variable that is set under a name of another system, or misspelt.

    names: those that are set. read: those that some settings class reads. A name whose replacement is set as well is
    no trouble.
    """
    known, present = set(read), set(names)
    table = {pattern: instead for kind in kinds for pattern, instead in kind.other_names.items()}
    for name in sorted(present - known):
        instead = next((text for pattern, text in table.items() if re.fullmatch(pattern, name)), None)
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
