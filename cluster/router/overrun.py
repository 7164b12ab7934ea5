"""`Overrun`: how many times longer than thought rounds take. What the parts do not tell shows in their sum."""

from __future__ import annotations

_STEP = 0.1  # of a moving average; what was seen before counts less, the more rounds of the other kind were in between
_FADING, _MOST_STEP = 0.98, 0.4
_MOST_OFF = 2.0  # times: a round farther off than this counts as if it were so far off


class Overrun:
    """A mean of times, not of speeds, whose rounds of 20 and 30 ms would seem as good as two of 24; nor of logarithms,
    as models of latency learn them, whose mean is below that of times, the more so the noisier these are."""

    def __init__(self) -> None:
        self.factor = 1.0
        self._num_passed_by = 0  # rounds of the other kind since the last of this one

    def observe(self, factor: float) -> None:
        """A round has taken so many times as long as thought."""
        step = min(1.0 - (1.0 - _STEP) * _FADING**self._num_passed_by, _MOST_STEP)
        self.factor += step * (min(max(factor, 1.0 / _MOST_OFF), _MOST_OFF) - self.factor)
        self._num_passed_by = 0

    def pass_by(self) -> None:
        """A round was of the other kind."""
        self._num_passed_by += 1
