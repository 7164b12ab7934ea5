"""`Overruns`: how many times longer than thought rounds take. What the parts do not tell shows in their sum."""

from __future__ import annotations

_GAIN = 0.1  # of an observation in the long run, where rounds are of one kind alone: the last ten or so count
_DRIFT = 2e-3  # standard deviation, per round, of what changes one kind alone
# Standard deviations before any round: of both kinds together, of each besides, which grows no larger either.
_FIRST_COMMON, _MOST_OWN = 0.2, 0.05
_MOST_OFF = 2.0  # times: a round farther off than this counts as if it were so far off
_LEAST_NOISE = 0.02


class Overruns:
    """Of rounds without drafts and of those with (a Kalman filter of both factors).

    Mostly one kind is run. Whatever slows the machine down slows both, so that the other kind's factor goes along. A
    few rounds of the other kind move that one's factor more than the first, of which far more is known: were one a
    multiple of the other, the noise of a few rounds without drafts would be in what drafts cost.

    A factor is a mean of times, not of speeds, whose rounds of 20 and 30 ms would seem as good as two of 24; nor of
    logarithms, as models of latency learn them, whose mean is below that of times, the more so the noisier these are.
    """

    def __init__(self) -> None:
        self.factors = [1.0, 1.0]  # without drafts, with
        self._common = _FIRST_COMMON**2  # the covariance of both
        self._variances = [self._common + _MOST_OWN**2] * 2

    def observe(self, has_drafts: bool, factor: float, noise: float) -> None:
        """A round has taken so many times as long as thought. `noise`: standard deviation of single rounds' times, in
        parts of what is thought."""
        seen, other = int(has_drafts), int(not has_drafts)
        of_round = max(noise, _LEAST_NOISE) ** 2
        drift = of_round * _GAIN**2 / (1.0 - _GAIN)
        self._common += drift
        for kind in (0, 1):
            self._variances[kind] = min(self._variances[kind] + drift + _DRIFT**2, self._common + _MOST_OWN**2)
        off = _bounded(factor) - self.factors[seen]
        of_off = self._variances[seen] + of_round
        gain, gain_of_other = self._variances[seen] / of_off, self._common / of_off
        self.factors[seen] += gain * off
        self.factors[other] = _bounded(self.factors[other] + gain_of_other * off)
        self._variances[other] -= gain_of_other * self._common
        self._common -= gain * self._common
        self._variances[seen] -= gain * self._variances[seen]


def _bounded(factor: float) -> float:
    return min(max(factor, 1.0 / _MOST_OFF), _MOST_OFF)
