"""`StageClock`: how long the named stages of one step took."""

from __future__ import annotations

from time import perf_counter_ns


class StageClock:
    """Starts when it is made; `lap` names what was done since the last one."""

    def __init__(self) -> None:
        self.times_us: dict[str, int] = {}
        self._last_ns = perf_counter_ns()

    def lap(self, stage: str) -> None:
        now_ns = perf_counter_ns()
        self.times_us[stage] = self.times_us.get(stage, 0) + (now_ns - self._last_ns) // 1000
        self._last_ns = now_ns
