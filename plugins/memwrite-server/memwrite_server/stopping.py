"""Strings that end an answer, found while it grows."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class Stopper:
    """Takes the pieces of an answer, hands them on, and ends before the first stop string.

    The last characters are held back while a stop string may begin with them.

    Args:
        stops: the strings.
        receive: is called with what is certain; None where nobody listens.

    Attributes:
        text: the answer so far.
        stopped: whether a stop string has come.
    """

    def __init__(self, stops: Sequence[str], receive: Callable[[str], object] | None) -> None:
        self._stops, self._receive = [stop for stop in stops if stop], receive
        self.text, self.stopped = "", False
        self._sent = 0

    @property
    def watches(self) -> bool:
        """Return whether the pieces are wanted as they come."""
        return bool(self._stops) or self._receive is not None

    def __call__(self, piece: str) -> None:
        if self.stopped:
            return
        self.text += piece
        at = min((at for stop in self._stops if (at := self.text.find(stop)) >= 0), default=-1)
        if at >= 0:
            self.text, self.stopped = self.text[:at], True
        self._send(len(self.text) - (0 if self.stopped else self._held()))

    def finish(self) -> bool:
        """Hand on what was held back, and return whether a stop string ended the answer."""
        self._send(len(self.text))
        return self.stopped

    def _held(self) -> int:
        """Return how many of the last characters could be the beginning of a stop string."""
        longest = max(map(len, self._stops), default=1) - 1
        for count in range(min(longest, len(self.text)), 0, -1):
            tail = self.text[-count:]
            if any(stop.startswith(tail) for stop in self._stops):
                return count
        return 0

    def _send(self, upto: int) -> None:
        if self._receive is not None and upto > self._sent:
            self._receive(self.text[self._sent : upto])
        self._sent = max(self._sent, upto)
