"""A child that validates images, and that images can kill, stop or take over."""

from __future__ import annotations

import os
import signal
import time

from uploads.process.child import ImageWorker, run_child
from uploads.process.messages import ImageRequest, pack_answer

POISON = b"poison"
ENDLESS = b"endless"
KILLED = b"killed"
STUCK = b"stuck"
FORGETFUL = b"forgetful"
LIAR = b"liar"
GREEDY = b"greedy"
SLOW = b"slow"


class PoisonableWorker(ImageWorker):
    def answer(self, request: ImageRequest) -> bytes:
        if POISON in request.data:
            signal.raise_signal(signal.SIGSEGV)
        if KILLED in request.data:
            os.kill(os.getpid(), signal.SIGKILL)
        while ENDLESS in request.data:
            pass
        if STUCK in request.data:
            time.sleep(60)
        if FORGETFUL in request.data:
            return pack_answer(request.number, MemoryError())
        if SLOW in request.data:
            time.sleep(0.1)
        if LIAR in request.data:
            return b"whatever"
        if GREEDY in request.data:
            bytearray(2**33)
        return super().answer(request)


if __name__ == "__main__":
    run_child(PoisonableWorker)
