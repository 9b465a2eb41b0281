"""Ctrl-C and SIGTERM: finish the step, write a checkpoint, then stop."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class StopRequest:
    """Context manager that turns the first SIGINT or SIGTERM into a request.

    `exit_code` is 0 until one arrives, then 130 (SIGINT) or 143 (SIGTERM). A Ctrl-C after that
    raises `KeyboardInterrupt` at once. Outside the main thread, where Python allows no handlers,
    it does nothing.
    """

    def __init__(self) -> None:
        self.exit_code = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            # None: the handler was not installed from Python and cannot be put back from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.exit_code and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.exit_code = self.exit_code or 128 + number
