"""Terminal output: results on standard output, progress and errors on standard error, and errors as sentences."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broker.cli import ExitCode
from broker.errors import ApiError, ProviderError, SettingsError
from storage.errors import StorageError
from storage.sql.migrate import SchemaTooNew

if TYPE_CHECKING:
    from rich.console import Console


class CommandError(Exception):
    """The command failed; the message is one sentence for a person."""


def explain_error(error: BaseException) -> tuple[str, ExitCode] | None:
    """Return the sentence and exit code of an error that a person can fix; None for a bug."""
    from broker.client import BrokerApiError, BrokerError  # with it an HTTP client, which the broker does not need

    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]  # a task group wraps the error that ended it
    match error:
        case BrokerApiError(status=HTTPStatus.UNAUTHORIZED):
            cure = "Commands send BROKER_KEY, or the first of BROKER_API_KEYS to the broker that is configured here."
            return f"{error} {cure}", ExitCode.NOT_DONE
        case SettingsError() | StorageError() | SchemaTooNew():
            return str(error), ExitCode.UNAVAILABLE
        case CommandError() | ApiError() | ProviderError() | BrokerError():
            return " ".join([str(error), *getattr(error, "__notes__", ())]), ExitCode.NOT_DONE
        case OSError(filename=str() | Path()):
            return f"{error.filename}: {error.strerror}.", ExitCode.NOT_DONE
        case _:
            return None


def print_line(text: str = "", *, style: str = "") -> None:
    """Print a line of the result."""
    _print(text, style)


def print_note(text: str, *, style: str = "") -> None:
    """Print progress or advice to standard error."""
    _print(text, style, stderr=True)


def print_error(text: str) -> None:
    print_note(text, style="bold red")


def print_json(document: Any) -> None:
    """Print a document on one line, without colours or wrapping; control characters are escaped."""
    print(_escape_controls(json.dumps(document, ensure_ascii=False)), flush=True)


def print_facts(facts: Mapping[str, str | None], *, width: int = 10) -> None:
    """Print names and values in two columns, without the empty ones."""
    for name, value in facts.items():
        if value:
            print_line(f"{name:<{width}} {value}")


def format_json(document: Any) -> str:
    """Return indented JSON in which control characters are escaped."""
    text = json.dumps(document, ensure_ascii=False, indent=2)
    return _escape_controls(text)


def _escape_controls(text: str) -> str:
    return (
        text
        if text.isprintable()
        else "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)
    )


def clear_screen() -> None:
    """Clear a terminal; does nothing elsewhere."""
    if sys.stdout.isatty():
        _make_console().clear()


@contextmanager
def show_progress(text: str) -> Iterator[Callable[[str], None]]:
    """Yield a function that updates the status line; without a terminal each update is a line."""
    if not sys.stderr.isatty():
        print_note(text)
        yield print_note
        return
    from rich.text import Text

    console = _make_console(stderr=True)
    with console.status(Text(strip_controls(text))) as status:
        yield lambda update: status.update(Text(strip_controls(update)))


def strip_controls(text: str) -> str:
    """Replace control characters: a prompt or a remote error must not control the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def _print(text: str, style: str, *, stderr: bool = False) -> None:
    """Print a line, with its style on a terminal. A service has none, and does not load what draws styles."""
    stream = sys.stderr if stderr else sys.stdout
    if not stream.isatty():
        print(strip_controls(text), file=stream, flush=True)
        return
    from rich.text import Text

    _make_console(stderr=stderr).print(Text(strip_controls(text), style=style))


def _make_console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=True)
