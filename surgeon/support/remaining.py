"""How long a stage goes on, from what it has done so far."""

from __future__ import annotations

from collections import deque

#: What counts is how fast the later part of what was done went, this share of it: the start is often slower.
LATER = 0.5


class Remaining:
    """The seconds that are left, at the pace of the later half of what was done.

    >>> remaining = Remaining()
    >>> remaining.add(0.0, 0.0), remaining.left(1.0)
    (None, None)
    >>> remaining.add(2.0, 0.25)
    >>> remaining.left(2.0), remaining.left(3.0)
    (6.0, 5.0)
    """

    def __init__(self) -> None:
        self.share = 0.0
        self._seen: deque[tuple[float, float]] = deque()

    def add(self, seconds: float, share: float) -> None:
        """Note that this share, from 0 to 1, was done at `seconds` after the start.

        The first one tells how much was done before the start; one that is no larger than the last tells nothing.
        """
        if self._seen and share <= self.share:
            return
        self.share = share
        self._seen.append((seconds, share))
        while len(self._seen) > 2 and self._seen[1][1] <= share * LATER:
            self._seen.popleft()

    def left(self, seconds: float) -> float | None:
        """The seconds that are left at `seconds` after the start; None as long as nothing tells."""
        if len(self._seen) < 2:
            return None
        (before, first), (last, share) = self._seen[0], self._seen[-1]
        return max((last - before) / (share - first) * (1 - share) - (seconds - last), 0.0)
