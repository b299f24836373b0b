"""Signals to a training run, which checks for them between steps."""

import contextlib
import signal
from collections.abc import Iterator

from vtools import process

SAVING = "saving after this step; a second signal ends at once"


class Asked:
    """Pending requests: SIGTERM, SIGINT and SIGHUP to save and end, SIGUSR1 to save and continue."""

    def __init__(self, alone: bool, says: bool) -> None:
        """`alone`: no launcher forwards signals to this process, so a second one means: end now.

        `says`: this process tells the user that the signal was received.
        """
        self.alone, self.says = alone, says
        self.end: int | None = None
        self.save = False

    def __call__(self, signum: int, frame: object) -> None:
        if signum == signal.SIGUSR1:
            self.save = True
        elif self.end is not None and self.alone:  # asked twice: do not wait for the checkpoint
            raise process.Interrupted(signum)
        else:
            if self.end is None and self.says:
                process.announce("train", SAVING)
            self.end = self.end or signum

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals for the length of the block."""
        before = {}
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            if signum == signal.SIGUSR1 or signal.getsignal(signum) is not signal.SIG_IGN:
                before[signum] = signal.signal(signum, self)
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
