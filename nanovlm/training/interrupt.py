"""A run that is asked to stop ends after the step in hand."""

from __future__ import annotations

import os
import signal
import threading


class Interrupt:
    """Ctrl-C, or a polite kill, ends the run after the step in hand; the second one ends it at once."""

    def __enter__(self) -> Interrupt:
        self.asked = False
        self.before = {}
        if threading.current_thread() is threading.main_thread():  # nobody can press Ctrl-C elsewhere
            self.before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, *_: object) -> None:
        self.asked = True
        os.write(2, b"\nStopping after this step. Ctrl-C again stops at once.\n")  # print is not safe in a handler
        self.__exit__()

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler or signal.SIG_DFL)
