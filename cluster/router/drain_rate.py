"""How fast a queue drains, and so when to come back."""

from __future__ import annotations

import math

_WINDOW_S = 30.0
_LEAST_S, _MOST_S = 1.0, 60.0


class DrainRate:
    """Departures per second over about the last half minute: each counts less with time, by exp(−age / 30 s)."""

    def __init__(self) -> None:
        self._first_at: float | None = None
        self._last_at = 0.0
        self._weight = 0.0

    def add(self, num_departures: int, now: float) -> None:
        """`now` in seconds, of any clock that never goes back."""
        if num_departures == 0:
            return
        if self._first_at is None:
            self._first_at = now
        self._weight = self._decayed(now) + num_departures
        self._last_at = now

    def seconds_for(self, num_waiting: int, now: float) -> float:
        """Until all who wait now have left, at least 1 s and at most 60 s; 1 s while nobody ever left."""
        if self._first_at is None:
            return _LEAST_S
        # What was not seen before the first departure must not count as none: divide by what could be seen.
        seen_s = _WINDOW_S * -math.expm1(-max(now - self._first_at, _LEAST_S) / _WINDOW_S)
        rate = self._decayed(now) / seen_s
        return min(max(num_waiting / rate, _LEAST_S), _MOST_S) if rate > 0 else _MOST_S

    def _decayed(self, now: float) -> float:
        return self._weight * math.exp((self._last_at - now) / _WINDOW_S)
