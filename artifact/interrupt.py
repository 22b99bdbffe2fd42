"""Ctrl-C that gets through where a library swallows it.

Python turns the signal into a KeyboardInterrupt wherever it happens to be; inside a finalizer, an
import or a callback from C++ that exception is printed or dropped, and the run would go on.
"""

from __future__ import annotations

import signal
import threading
from typing import Any

_seen = False


def listen_for_interrupt() -> None:
    """Remember every Ctrl-C from now on; nothing where the caller has chosen what it does."""
    global _seen
    _seen = False
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _remember)


def raise_if_interrupted() -> None:
    """Between two stages.

    Raises:
        KeyboardInterrupt: there was a Ctrl-C since `listen_for_interrupt`.
    """
    if _seen:
        raise KeyboardInterrupt


def _remember(number: int, frame: Any) -> None:
    global _seen
    _seen = True
    raise KeyboardInterrupt
