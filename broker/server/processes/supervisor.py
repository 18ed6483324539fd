"""The supervisor of the processes of `broker serve --workers N`.

It imports everything, then forks: a process starts in a fraction of a second, shares the memory of the code, and has
the settings of the others even if `.env` was changed since. Each process listens on a socket of its own with
SO_REUSEPORT: the kernel spreads connections evenly over them, and neither a process that ends nor the packet filter of
one that stops concerns the others.

The first process starts alone. It migrates the database, and reports once what is wrong with the settings. A process
that ends later is started again, after a pause that grows if it does so soon.
"""

from __future__ import annotations

import gc
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from broker.logs import log
from broker.server.processes.link import READY, REPORT, SUMS, decode, encode
from broker.server.processes.metrics_hub import MetricsHub
from broker.tasks.policy import doubled_seconds

STABLE_SECONDS: Final = 10.0
"""A process that lived as long is started again at once."""
FIRST_PAUSE_SECONDS: Final = 0.5
MAX_PAUSE_SECONDS: Final = 30.0
STOP_SECONDS: Final = 75.0
"""Longer than a process takes to drain; what still runs is killed."""
READ_BYTES: Final = 2**18

_SIGNALS: Final = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)

RunProcess = Callable[[int, socket.socket], int]
"""Runs process `number` with its end of the link, and returns its exit code."""


class _Child:
    """One running process, seen from the supervisor."""

    def __init__(self, pid: int, link: socket.socket) -> None:
        self.pid = pid
        self.link = link
        self.started_at = time.monotonic()
        self.is_ready = False
        self.unsent = b""
        self.is_open = True
        """False once the process has closed its end."""
        self._received = b""

    def read_messages(self) -> Iterator[tuple[str, Any]]:
        """Yield the messages that have arrived."""
        with suppress(BlockingIOError):
            while self.is_open:
                try:
                    data = self.link.recv(READ_BYTES)
                except ConnectionError:
                    data = b""
                self.is_open = data != b""
                *lines, self._received = (self._received + data).split(b"\n")
                yield from map(decode, lines)

    def flush(self) -> None:
        """Send what the process can take now."""
        with suppress(BlockingIOError):
            try:
                self.unsent = self.unsent[self.link.send(self.unsent) :]
            except ConnectionError:  # it has ended
                self.unsent = b""


@dataclass(kw_only=True)
class _Restarts:
    """When a process is to be started again."""

    failures: int = 0
    """Consecutive ends soon after the start."""
    at: float | None = 0.0
    """By the monotonic clock; None while the process runs."""

    def plan(self, lived_seconds: float) -> float:
        """Plan the next start; return the pause in seconds."""
        self.failures = 0 if lived_seconds >= STABLE_SECONDS else self.failures + 1
        pause = doubled_seconds(FIRST_PAUSE_SECONDS, self.failures - 1, MAX_PAUSE_SECONDS) if self.failures else 0.0
        self.at = time.monotonic() + pause
        return pause


class Supervisor:
    """Runs `count` processes, numbered from 1, until SIGTERM or SIGINT."""

    def __init__(self, count: int, run_process: RunProcess, announce: Callable[[Sequence[Any]], None]) -> None:
        """announce: called once when all processes are ready, with the summary of the first."""
        self._run_process = run_process
        self._announce = announce
        self._children: dict[int, _Child] = {}
        self._restarts = {number: _Restarts() for number in range(1, count + 1)}
        self._summary: Sequence[Any] | None = None
        self._is_announced = False
        self._exit_code = 0
        self._is_forced = False
        """True after a second signal: exit codes then say nothing."""
        self._stop_by: float | None = None
        """None until the stop; then the moment at which remaining processes are killed, by the monotonic clock."""
        self._selector = selectors.DefaultSelector()
        self._hub = MetricsHub(
            ask=lambda number: self._send(number, REPORT),
            answer=lambda number, sums: self._send(number, SUMS, sums),
        )

    def run(self) -> int:
        """Return the exit code: 0, or that of a process that could not start at first, or did not drain."""
        gc.collect()
        gc.freeze()  # collections in the processes then leave the shared pages as they are
        with self._receive_signals() as signals:
            while self._stop_by is None or self._children:
                if self._stop_by is None:
                    self._start_due()
                for key, events in self._selector.select(self._seconds_to_wait()):
                    if key.data is None:
                        for number in signals.recv(64):
                            self._on_signal(signal.Signals(number))
                    else:
                        self._on_event(key.data, events)
                self._hub.finish_if_due(time.monotonic())
                self._kill_late()
        return self._exit_code

    # -- processes

    def _start_due(self) -> None:
        """Start processes that are due; of the first start only the first until it is ready."""
        for number, restart in self._restarts.items():
            if restart.at is not None and restart.at <= time.monotonic():
                self._start(number)
            if self._summary is None:
                return

    def _start(self, number: int) -> None:
        ours, theirs = socket.socketpair()
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # none may meet the handlers of the other side of the fork
        try:
            pid = os.fork()
            if pid == 0:
                self._become_process(number, ours, theirs)
        except OSError as error:  # too many processes, or too little memory: the others must go on
            ours.close()
            if self._summary is None:
                raise
            pause = self._restarts[number].plan(0.0)
            log.error(
                "a process cannot be started",
                action="server_process_not_started",
                process=number,
                problem=error.strerror,
                restart_seconds=pause,
            )
            return
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            theirs.close()
        ours.setblocking(False)
        self._restarts[number].at = None
        self._children[number] = _Child(pid, ours)
        self._selector.register(ours, selectors.EVENT_READ, number)
        self._hub.begin(number)
        log.info("a process was started", action="server_process_started", process=number, pid=pid)

    def _become_process(self, number: int, ours: socket.socket, theirs: socket.socket) -> None:
        """Run the process and exit; does not return."""
        code = 1
        try:
            os.setpgid(0, 0)  # Ctrl-C in a terminal is for the supervisor, which passes it on
            signal.set_wakeup_fd(-1)
            self._selector.close()
            for other in (ours, *(child.link for child in self._children.values())):
                other.close()
            for received in _SIGNALS:
                signal.signal(received, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            code = self._run_process(number, theirs)
        except BaseException:
            sys.excepthook(*sys.exc_info())  # nothing else would show it
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _reap(self) -> None:
        """Note which processes have ended. As the first process of a container, collect those of others, too."""
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                for number, child in list(self._children.items()):
                    if child.pid == pid:
                        self._on_end(number, child, os.waitstatus_to_exitcode(status))

    def _on_end(self, number: int, child: _Child, code: int) -> None:
        """Plan the next start of a process that has ended, or stop if it could not start at first.

        code: negative for a signal.
        """
        if child.is_open:
            self._on_event(number, selectors.EVENT_READ)  # its last report, and the end of the link
        child.link.close()
        del self._children[number]
        self._hub.end(number)
        if self._stop_by is not None:
            if code not in {0, -signal.SIGTERM} and not self._is_forced:
                self._exit_code = self._exit_code or max(code, 1)
            return
        if not self._is_announced:  # it has said why
            self._exit_code = max(code, 1)
            self._stop(signal.SIGTERM)
            return
        pause = self._restarts[number].plan(time.monotonic() - child.started_at)
        log.error(
            "a process has ended, and is started again" if child.is_ready else "a process cannot start, see its error",
            action="server_process_ended",
            process=number,
            exit_code=code,
            restart_seconds=pause,
        )

    # -- events

    @contextmanager
    def _receive_signals(self) -> Iterator[socket.socket]:
        """Yield a socket from which the numbers of received signals can be read."""
        receiver, sender = socket.socketpair()
        receiver.setblocking(False)
        sender.setblocking(False)
        handlers = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
        before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        self._selector.register(receiver, selectors.EVENT_READ, None)
        try:
            yield receiver
        finally:
            signal.set_wakeup_fd(before)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self._selector.close()
            receiver.close()
            sender.close()

    def _on_signal(self, number: signal.Signals) -> None:
        if number == signal.SIGCHLD:
            self._reap()
        elif self._stop_by is None:
            log.info(f"stopping on {number.name}", action="server_stopping")
            self._stop(signal.SIGTERM)
        else:
            self._is_forced = True
            self._stop(signal.SIGINT)

    def _stop(self, number: signal.Signals) -> None:
        """Let all processes stop: SIGTERM drains them, SIGINT stops them at once."""
        self._stop_by = time.monotonic() + STOP_SECONDS
        for child in self._children.values():
            os.kill(child.pid, number)

    def _kill_late(self) -> None:
        if self._stop_by is not None and time.monotonic() >= self._stop_by:
            for number, child in self._children.items():
                log.error("a process did not stop, and is killed", action="server_process_killed", process=number)
                os.kill(child.pid, signal.SIGKILL)
            self._stop_by += STOP_SECONDS

    def _on_event(self, number: int, events: int) -> None:
        child = self._children.get(number)
        if child is None:  # it has just ended
            return
        if events & selectors.EVENT_WRITE:
            self._flush(number)
        for kind, value in child.read_messages():
            if kind == READY:
                self._on_ready(child, value)
            elif kind == REPORT:
                self._hub.store(number, value)
            elif kind == SUMS:
                self._hub.request(number)
        if not child.is_open:
            self._selector.unregister(child.link)

    def _on_ready(self, child: _Child, summary: Sequence[Any]) -> None:
        child.is_ready = True
        if self._summary is None:
            self._summary = summary
        ready = sum(other.is_ready for other in self._children.values())
        if not self._is_announced and ready == len(self._restarts):
            self._is_announced = True
            self._announce(self._summary)

    def _send(self, number: int, kind: str, value: Any = None) -> None:
        if self._children[number].is_open:
            self._children[number].unsent += encode(kind, value)
            self._flush(number)

    def _flush(self, number: int) -> None:
        """Send what the process takes now; the rest when it can take more."""
        child = self._children[number]
        child.flush()
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if child.unsent else 0)
        self._selector.modify(child.link, events, number)

    def _seconds_to_wait(self) -> float | None:
        """Return the seconds until something is due without an event; None for no limit."""
        moments = [self._hub.due_at, self._stop_by]
        if self._stop_by is None and self._summary is not None:
            moments += [restart.at for restart in self._restarts.values()]
        known = [moment for moment in moments if moment is not None]
        return max(0.0, min(known) - time.monotonic()) if known else None
