"""SIGINT and SIGTERM: end a command in order, at once or after what must not be cut off."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STDERR = 2
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """The end of a command by a signal. As KeyboardInterrupt, it is no error of the program."""

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(self.signal.name)


class Interruption:
    """What this process does at a signal: it raises `Interrupted`, now or when it is asked to.

    A handler that raises may cut off anything, so a training defers the signal until it can go on
    from what it has saved. A second signal is obeyed at once.
    """

    def __init__(self) -> None:
        self.received: int | None = None  # the number of a signal that was deferred
        self.deferring = False

    def install(self) -> None:
        """Handle the signals, instead of any other handler of theirs."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self.handle)

    def defer(self, deferring: bool) -> None:
        """Defer signals from now on, or raise what was deferred and defer no more."""
        self.deferring = deferring
        if deferring:
            self.install()
        elif self.received is not None:
            raise Interrupted(self.received)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Defer the first signal of a training; raise `Interrupted` for any other."""
        if not self.deferring or self.received is not None:
            raise Interrupted(number)
        self.received = number
        if os.environ.get("LOCAL_RANK", "0") == "0":
            name = signal.Signals(number).name
            text = f"{name}: stopping after this step; a second signal stops at once."
            # Not by print, whose buffer is locked if the signal came within another print.
            os.write(STDERR, f"{text}\n".encode())


INTERRUPTION = Interruption()


@contextmanager
def interruptible() -> Iterator[None]:
    """End what is in the context by `Interrupted` at SIGINT and SIGTERM."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    INTERRUPTION.received, INTERRUPTION.deferring = None, False
    INTERRUPTION.install()
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
