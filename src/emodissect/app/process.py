"""A command is a process of its own: what it imports lives until its end and need not be garbage-collected."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import sys


class OwnProcess:
    """Spares a command the garbage collections of its imports, and the removal of every object behind its last line.

    Importing torch and Lightning makes 900,000 objects that all live until the end. Looking through them again and
    again takes a quarter of the imports' time, and taking them apart at the end takes another second.
    """

    def __init__(self) -> None:
        self.succeeded = False
        gc.disable()
        atexit.register(self._leave)  # the first handler that is registered is called last

    def imported(self) -> None:
        """The imports are done: from here on garbage is collected, but not looked for among what they made."""
        if not gc.isenabled():  # once; a multirun comes here for each of its jobs
            gc.freeze()
            gc.enable()

    def end(self) -> None:
        """Ends the process with exit code 0."""
        self.succeeded = True
        sys.exit()

    def _leave(self) -> None:
        """Threads have ended and other handlers were called by now; what is left is to free memory, as the end does."""
        if not self.succeeded:
            gc.unfreeze()  # else extension modules report their objects as leaked
            return
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(0)
