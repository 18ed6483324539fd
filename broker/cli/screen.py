"""What people see: results on standard output, progress and complaints on standard error, and errors in a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from broker.client import BrokerError
from broker.errors import ProviderError, Refusal, SettingsError
from storage.errors import StorageError
from storage.sql.migrate import SchemaTooNew


class Unable(Exception):
    """The command could not do what it was asked for. The message is one sentence for a person."""


@dataclass(frozen=True, kw_only=True)
class Explained:
    """An error in a sentence, and how the command ends because of it."""

    sentence: str
    exit_code: int


def explained(error: BaseException) -> Explained | None:
    """The errors a person can do something about; None for those that are our fault and deserve their traceback."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]  # a task group wraps what broke out of it
    match error:
        case SettingsError() | StorageError() | SchemaTooNew():
            return Explained(sentence=str(error), exit_code=2)
        case Unable() | Refusal() | ProviderError() | BrokerError():
            notes = getattr(error, "__notes__", ())
            return Explained(sentence=" ".join([str(error), *notes]), exit_code=1)
        case _:
            return None


def say(text: str = "", *, style: str = "") -> None:
    """A line of the result."""
    _console().print(Text(printable(text), style=style))


def note(text: str, *, style: str = "") -> None:
    """A line of news or advice that is not the result."""
    _console(stderr=True).print(Text(printable(text), style=style))


def complain(text: str) -> None:
    note(text, style="bold red")


def say_json(document: Any) -> None:
    """One document on one line, untouched by colours and widths."""
    print(json.dumps(document, ensure_ascii=False), flush=True)


def clear() -> None:
    """Room for the next look, on a terminal; elsewhere looks follow each other."""
    _console().clear()


@contextmanager
def progress(text: str) -> Iterator[Callable[[str], None]]:
    """Something takes its time. On a terminal the text changes in place; elsewhere each change is a line."""
    console = _console(stderr=True)
    if not console.is_terminal:
        note(text)
        yield note
        return
    with console.status(Text(printable(text))) as status:
        yield lambda news: status.update(Text(printable(news)))


def printable(text: str) -> str:
    """Without control characters: a prompt or an error from afar must not steer the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def _console(*, stderr: bool = False) -> Console:
    return Console(stderr=stderr, highlight=False, soft_wrap=True)
