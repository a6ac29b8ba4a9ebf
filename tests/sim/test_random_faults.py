"""Random faults under virtual time: the promises hold at every event, and all heals once faults cease.

A failure names its seed; `chaos sim --random --seeds SEED` shows the shortest schedule that breaks the promise.
"""

import pytest

from chaos.sim.mix import random_run
from chaos.sim.runs import finish


@pytest.mark.parametrize("first", range(0, 40, 10))
def test_promises_hold_and_everything_heals(first: int) -> None:
    for seed in range(first, first + 10):
        random_run(seed).run()


FOUND = [
    (621, None, "all members were asked to leave and did while one was cut off: it has nobody to come back to, which "
     "is the run's end and breaks nothing"),
    (4, None, "a view is one view although a peer that was left out by it does not know the name of one whose link it "
     "cuts: names are no part of it"),
    (691, None, "a bit that flips in a result flips before its digest is made; the simulator flipped one between "
     "the digest and its use, which no run can notice"),
    (100070, 4, "a learner's only link was cut by order and wanted back, but nobody it could reach could agree: an end "
     "that wants a link dials it at once"),
    (100014, 6, "a contribution outlived its worker until the peer was a member again, and was sent from memory that "
     "the next worker had written to"),
    (2900014, range(3, 10), "a stranger spoke in the very moment in which a takeover became due: what time alone makes "
     "due is not what the stranger changed"),
    (3010592, range(3, 10), "a learner was found to differ while its worker was dead, and its next worker got what led "
     "nowhere"),
    (7000431, range(3, 10), "a learner became a member between two ticks and had not asked for the step before its "
     "first one: nobody said that it lacked it for 2 s"),
    (7000379, range(3, 10), "a peer opened a step and lost its place in one event: the simulator looked for what it "
     "contributed"),
    (7100379, range(3, 10), "a learner that missed a view counted the contributions which that view had voided, and as "
     "a member waited for ever for the rest of them"),
    (7100194, range(3, 10), "a joiner believed a stranger that repeated a decision: only who is in a view may "
     "tell of it"),
    (7200672, range(3, 10), "a lone member whose state was found to differ contributed nothing to one step after the "
     "other, without end, in one event: where no member has a worker, no step is made"),
    (8000048, range(3, 10), "one of those that held the last stable step died without a word: the others wait for it, "
     "as they must, and the simulator took that for a standstill"),
    (8005470, range(3, 10), "an agent that was stopped gave its worker's successor what was meant for the dead one; in "
     "the simulator only, but a real agent could turn such a successor away"),
    (8007347, range(3, 10), "a peer was asked to leave while its worker was so late that results it needs were gone: "
     "it waited for ever for a worker that could not come to its end"),
    (8008038, range(3, 10), "a learner had finished an attempt that was void, and took a snapshot of that very step: "
     "the check looked at the step's number only"),
    (8009155, range(3, 10), "the same, where results since that step were there already: the learner never said "
     "that it stood at the snapshot's step"),
    (8020025, range(3, 10), "a new member had not heard an older member's word on the last steps, only on later ones: "
     "it could free no memory, and had none for that later step"),
    (8030508, range(3, 10), "a link was wanted back while one of its ends was away: the order was dropped, the cut "
     "stayed, and with the relay's death the two had no way to each other"),
    (8063131, range(3, 10), "a view was decided by two that it left out; of its members, who had voted for it heard no "
     "more of it, and refused those two as it had no quorum without them"),
    (8073312, range(3, 10), "who became a member with later results ahead, on disk as a learner's are, had no room for "
     "the one before them; by other changes this run is another one now: tests/agent/test_reduce_learners.py has it"),
    (8090112, range(3, 10), "a learner's worker applied a void attempt's result while the valid one took its place, "
     "after its state was given up: the check took that state for the run's"),
    (8082092, range(3, 10), "a learner was cut off until all that it knew were dead and the run went on with others, "
     "whom only the view in a dead peer's last words named: who had no vote did not look there"),
    (8020058, range(3, 10), "donors that had sent a damaged shard took it for sent when the learner began anew"),
]  # fmt: skip
"""(seed, peers at the beginning, what was wrong): violations that long runs found."""


@pytest.mark.parametrize(("seed", "peers", "what"), FOUND, ids=[f"{seed}-{peers}" for seed, peers, _ in FOUND])
def test_what_long_runs_found_stays_mended(seed: int, peers: int | range | None, what: str) -> None:
    violation = finish(random_run(seed, peers)).violation
    assert violation is None, f"again: {what}"
