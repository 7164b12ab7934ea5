"""`Speculation`: how many nodes a round of one target gets, and who is drafted for.

Of all sets of sequences to draft for, the one is taken by which the target writes the most tokens per second: λ. Of all
numbers of nodes, the one that maximises (expected tokens) − λ · (seconds of the round) (ARCHITECTURE section 4). No
drafts and no nodes are among the choices, so that speculation shrinks to nothing where it does not pay; and a little
time is set aside to see whether it pays again.

λ is that of rounds without prefill, with the sequences at hand. A moving average over all rounds would be too low where
prompts are prefilled, though tokens cost the same prefill however they are decoded; and too high or too low for a while
whenever the sequences change.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.router.drafted import Drafted
from cluster.router.estimates import Estimates, ObservedRound
from cluster.router.latency import RoundLoad
from cluster.router.links import TargetLink
from cluster.router.promises import Promise, Promises
from cluster.router.prospects import Prospects, cycles_s, warm_up
from cluster.router.sequence import RUNNING, Sequence
from cluster.router.settings import RouterSettings
from cluster.router.standing import Decision, StandingDecision
from cluster.router.tree_planner import TreePlanner
from cluster.router.trials import TRIAL_NODES, Trials
from dflash_core.trees.build import NodeBudget

Doubles = npt.NDArray[np.float64]

# Of the target's time for a row, what a drafter takes for a token's features: few layers, and of these keys and values.
_FEEDING_ROWS = 0.02
_LASTING_TOKENS = 16  # still wanted by a sequence that is worth a trial, or half of what it may write


class Speculation:
    """Of one target.

    Attributes:
        times: that its rounds take.
        rate: λ.
        promise: of the drafts chosen last; None where nothing is to be learned.
        is_paying: drafts, for some sequence at least, as far as known.
        stops_feeding: drafters, at once, for a trial of rounds without drafts.
    """

    def __init__(self, link: TargetLink, settings: RouterSettings, planner: TreePlanner) -> None:
        self._link = link
        self._settings = settings
        self._planner = planner
        self._estimates = Estimates(link, settings)
        self.times = self._estimates.times
        self.rate = 0.0
        self.promise: Promise | None = None
        self.is_paying = True
        self.stops_feeding = False
        self._promises = Promises()  # of those decided about last
        self._trials = Trials()
        self._standing = (StandingDecision(), StandingDecision())  # by micro-batch
        warm_up()

    def as_dict(self) -> dict[str, Any]:
        """What is known of the target at present, for export; times in seconds."""
        return {
            "num_sequences": len(self._link.sequences),
            "tokens_per_second": self.rate,
            **self._estimates.as_dict(),
        }

    def advantage_of_halves(self, belief: float) -> float:
        """The rate with two micro-batches over that with one, by the times of both, each with the drafts and nodes that
        suit it best.

        `belief`, 0 … 1: in what was seen of two.
        """
        running = [sequence for sequence in self._link.sequences if sequence.phase is RUNNING]
        if len(running) < 2:
            return 1.0
        wanting = self._planner.wanting(running)
        levels = np.sort(self._estimates.levels.of_next_drafts(wanting))[::-1]
        weight = sum([sequence.weight for sequence in running])
        half = (len(running) + 1) // 2
        one = self._estimates.prospects(levels, self._promises, weight, len(running), 1)
        two = self._estimates.prospects(levels[::2], self._promises, weight / 2, half, 2, belief)
        return self._best_rate(two) / self._best_rate(one)

    # --- nodes

    def node_budget(
        self, fixed: RoundLoad, mean_context: float, drafted: Drafted, num_roots: int, most_nodes: int
    ) -> NodeBudget:
        """What nodes cost, or how many there are where that is fixed.

        Args:
            fixed: the round without nodes. mean_context: of the roots.
            most_nodes: what the target's rows leave.
        """
        if self._settings.tree_budget is not None:
            pool = sum(map(self._planner.share, drafted.sequences))
            return NodeBudget.of(min(pool, most_nodes))
        most = min(most_nodes, sum(drafted.max_nodes))
        num_micro_batches = self.times.num_micro_batches
        verify_s = self.times.verify_s(fixed.num_rows + most, fixed, mean_context, num_micro_batches)[fixed.num_rows :]
        cost_s = cycles_s(verify_s, self.times.between_s(len(drafted.places), num_micro_batches), num_micro_batches)
        return NodeBudget(cost_s * self.times.overruns(num_micro_batches)[1], self.rate)

    # --- drafts

    def choose_drafted(self, ready: list[Sequence], running: list[Sequence]) -> list[Sequence]:
        """Those for which a draft is worth its time, and now and then others, to see whether it would be.

        Args:
            ready: of the running ones, who could be drafted for. running: all of the micro-batch.
        """
        self.promise = None
        self.stops_feeding = False
        if not running:
            return []
        standing = self._standing[running[0].micro_batch or 0]
        decision = standing.pass_on(ready, running)
        if decision is not None:
            self.rate, self.promise = decision.rate, decision.promise
            return [*decision.drafted]
        wanting = self._planner.wanting(ready)
        weight = sum([sequence.weight for sequence in running])
        if not wanting:
            self.rate = weight / self.times.plain_cycle_s(self._estimates.load(len(running)))
            if not ready:
                standing.hold(Decision([], self.rate))
            return []
        if not self.times.knows_drafter and (drafter := wanting[0].drafter) is not None:
            self.times.begin_drafting(drafter.info)
        levels = self._estimates.levels.of_next_drafts(wanting)
        # Of equals, such as those never drafted for, first those whose drafter lacks least.
        order = np.lexsort((np.array([sequence.num_unfed_tokens for sequence in wanting], np.int64), -levels))
        wanting, levels = [wanting[place] for place in order.tolist()], levels[order]
        self._promises = self._estimates.levels.promises(wanting)
        found = self._estimates.prospects(levels, self._promises, weight, len(running), self.times.num_micro_batches)
        best = found.best
        self.rate = float(found.rates[best])
        if self._settings.tree_budget is not None:
            return wanting
        self.is_paying = best > 0 or self._would_pay(wanting, levels, weight, len(running))
        self._trials.begin(len(running), self.is_paying)
        if best == 0:
            chosen, tried = [], self._tried_alone(found, wanting)
        elif self.times.num_micro_batches == 1 and self._trials.of_none(found, best):
            self.stops_feeding = True
            return []
        else:
            chosen, tried = [*range(found.num_drafts[best])], self._tried_beside(found, best, wanting)
        promising = chosen or tried
        self.promise = self._promise(found, [wanting[place] for place in promising], levels[promising])
        for sequence in wanting:
            sequence.is_on_trial, sequence.min_nodes = False, 0
        for place in tried:
            wanting[place].is_on_trial, wanting[place].min_nodes = not wanting[place].is_fed, TRIAL_NODES
        drafted = [wanting[place] for place in chosen + tried]
        lasts = (chosen or not self.is_paying) and all(sequence.is_fed for sequence in drafted)
        if lasts and not tried and not self._trials.is_being_learned:
            standing.hold(Decision(drafted, self.rate, self.promise))
        return drafted

    def _tried_beside(self, found: Prospects, best: int, wanting: list[Sequence]) -> list[int]:
        """Places of some for which a draft is not thought to pay, where for others one is."""
        others = range(found.num_drafts[best], len(wanting))
        on_trial = [place for place in others if wanting[place].is_on_trial]
        if on_trial or not others:
            return on_trial
        catch_up_s = self._catch_up_s(wanting[others.start :])
        return [*others[: self._trials.of_further(found, best, catch_up_s, self._estimates.row_s)]]

    def _tried_alone(self, found: Prospects, wanting: list[Sequence]) -> list[int]:
        """The same where no draft is thought to pay."""
        lasting = [place for place, sequence in enumerate(wanting) if _is_lasting(sequence)]
        catch_up_s = self._catch_up_s([wanting[place] for place in lasting])
        return lasting[: self._trials.of_drafts(found, len(lasting), catch_up_s, self._estimates.row_s)]

    def _catch_up_s(self, sequences: list[Sequence]) -> Doubles:
        """`[sequences + 1]`: of the target's time, what the drafters of the first so many are to be sent first."""
        num_tokens = [*accumulate([sequence.num_unfed_tokens for sequence in sequences], initial=0)]
        return np.array(num_tokens, np.float64) * (_FEEDING_ROWS * self._estimates.row_s)

    def _would_pay(self, wanting: list[Sequence], levels: Doubles, weight: float, num_roots: int) -> bool:
        """Whether drafts would, if none of these were about to end: others will come that are not."""
        lasting = np.sort(self._estimates.levels.of_lasting_drafts(wanting))[::-1]
        if np.array_equal(lasting, levels):
            return False
        num_micro_batches = self.times.num_micro_batches
        return self._estimates.prospects(lasting, self._promises, weight, num_roots, num_micro_batches).best > 0

    def _promise(self, found: Prospects, chosen: list[Sequence], levels: Doubles) -> Promise | None:
        """What these are to bring; those that only catch up bring nothing yet."""
        of_fed = float(levels @ [sequence.is_fed for sequence in chosen])
        if of_fed <= 0.0:
            return None
        place = int(np.searchsorted(found.num_drafts, len(chosen)))
        gained = float(found.tokens[place] - found.tokens[0]) * of_fed / float(levels.sum())
        return Promise(self._promises, gained / self._promises.kept(self.times.num_micro_batches))

    def is_worth_waiting(self, missing: list[Sequence], seconds: float) -> bool:
        """Whether these sequences' drafts are worth more than what the target writes in that time."""
        return self._estimates.tokens_of_drafts(missing) > self.rate * seconds

    def _best_rate(self, found: Prospects) -> float:
        """With a fixed budget everybody is drafted for."""
        return float(found.rates[found.best if self._settings.tree_budget is None else -1])

    # --- learning

    def observe_round(self, done: ObservedRound) -> None:
        """What it took, and that its time went by."""
        has_told = self._estimates.observe_round(done)
        if done.taken_up_s is not None:
            self._trials.save(done.taken_up_s)
        if not done.planned.num_drafted:
            self._promises.fade(done.num_micro_batches)
            if has_told and done.num_micro_batches == 1:
                self._trials.see_none()

    def observe_drafts(
        self, sequences: list[Sequence], expected_tokens: list[float], num_accepted: list[int], shape: float
    ) -> float:
        """As `Estimates.observe_drafts`."""
        return self._estimates.observe_drafts(sequences, expected_tokens, num_accepted, shape, self.is_paying)


def _is_lasting(sequence: Sequence) -> bool:
    """Whether it is worth a trial: one that is about to end, once its drafter has caught up, tells next to nothing."""
    return sequence.num_wanted > min(_LASTING_TOKENS, sequence.request.max_tokens // 2)
