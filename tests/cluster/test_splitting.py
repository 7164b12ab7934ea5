"""Whether a round is split into halves."""

from __future__ import annotations

from cluster.router.estimates import ObservedRound
from cluster.router.latency import RoundLoad
from cluster.router.splitting import SplitChooser
from cluster.router.tree_planner import PlannedTrees
from tests.cluster.speculation_setup import Setup


class TestSplitting:
    def choose(self, setup: Setup, num_rounds: int, gain_of_halves: float, chooser: SplitChooser) -> list[int]:
        """Rounds as they would be run, halves at so many times the rate of one batch."""
        chosen = []
        one_s = setup.verify_s(8) + setup.speculation.times._plain_s[0]
        for _ in range(num_rounds):
            num_micro_batches = setup.speculation.times.num_micro_batches
            num = 8 // num_micro_batches
            planned = PlannedTrees.roots_only([7] * num)
            cycle_s = 0.5 * one_s / gain_of_halves if num_micro_batches == 2 else one_s
            load = RoundLoad(num, num, 0.0, 0.0)
            setup.speculation.observe_round(
                ObservedRound(load, planned, setup.verify_s(num), cycle_s, False, num_micro_batches)
            )
            setup.speculation.times.change_to(chooser.choose(setup.link))
            chosen.append(setup.speculation.times.num_micro_batches)
        return chosen

    def test_halves_where_drafting_is_long_and_one_where_it_is_short(self) -> None:
        for between_s, expected in ((15e-3, 2), (1e-3, 1)):
            setup = Setup(8, between_s=between_s, plain_s=between_s)
            assert self.choose(setup, 64, 1.1, SplitChooser(setup.speculation, 2))[-1] == expected

    def test_a_promise_that_is_not_kept_is_given_up_and_tried_again_later(self) -> None:
        setup = Setup(8, between_s=15e-3, plain_s=15e-3)
        setup.set_gains(*[0.0] * 8)
        chooser = SplitChooser(setup.speculation, 2)
        assert self.choose(setup, 16, 0.5, chooser)[-1] == 2
        assert self.choose(setup, 200, 0.5, chooser)[-1] == 1
        later = self.choose(setup, 4_000, 0.5, chooser)
        assert 0.0 < later.count(2) / len(later) < 0.1

    def test_one_where_only_one_is_allowed_or_there_is_one_sequence(self) -> None:
        setup = Setup(8, between_s=15e-3, plain_s=15e-3)
        assert set(self.choose(setup, 64, 1.0, SplitChooser(setup.speculation, 1))) == {1}
        alone = Setup(1, between_s=15e-3, plain_s=15e-3)
        assert set(self.choose(alone, 64, 1.0, SplitChooser(alone.speculation, 2))) == {1}
