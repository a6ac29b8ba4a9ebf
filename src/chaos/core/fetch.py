"""Pulling one snapshot: which shard is asked of which donor, planned anew as the donors show what they can do.

`planning.replan` decides. It is asked every `REPLAN_S`, and at once when a donor comes or goes; a donor is written
to only if what it is to send has changed. What was verified is in no plan any more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice

from chaos.core.arrivals import Arrivals
from chaos.core.context import Context
from chaos.core.events import ShardStored
from chaos.core.messages import ShardRequest, SnapshotOffer
from chaos.planning import together
from chaos.planning.replan import WORTH, Source, replan
from chaos.planning.shards import Donor as PlannedDonor

REPLAN_S = 0.25
"""Between two looks at the plan. With 4096 shards a look takes 5 ms of a core."""
EARLY = 0.25
"""In the beginning looks are closer: after so much of the time since the first request. Nothing is known of the donors
then, so they are asked for equal parts; with 16 fast ones the whole state came before the first look, in twice the time
that was needed. A dozen looks more than without. Not where learners serve each other: what they pass on comes later."""
UNMEASURED = (100e6, 0.001)
"""Bytes per second and seconds assumed of a link that has carried nothing yet; re-planned as shards arrive."""
EQUAL = 1e6
"""The rate (B/s) that learners assume of everybody where they plan together: only the ratios matter."""
RELAY_S = 0.5
"""For so long another learner may have nothing yet of what it is to pass on. A guess: some shards of a slow link."""
LOOK_S = 2.0
"""So long nobody is asked, until this host has seen what it has already: comparing goes at 1 GB/s."""
LOST_AFTER = 2
"""A donor that is silent for so many times `shard_timeout_s` is given up; after the first, it is asked once more."""


@dataclass
class _Donor:
    """A donor of this snapshot."""

    arrivals: Arrivals
    rtt_s: float
    queue: dict[int, None] = field(default_factory=dict)
    """What was asked of it and has not come, in order."""
    stale: bool = False
    """It would send what has come from elsewhere: its request has to be made anew."""
    afresh: bool = True
    """What it sent before may be lost with a link, or was damaged: the next request says so, and the first one does."""
    may: frozenset[int] | None = None
    """Another learner: what it may be asked for, as it has it or gets it first. None: a donor, who has everything."""
    cut: bool = False
    """Its link is down, and no other way to it is known."""
    reminded: int = 0
    """How often it was asked again as nothing came of it."""


class Fetch:
    """The shards of one snapshot that are still missing, and who is to send them."""

    def __init__(self, ctx: Context, offer: SnapshotOffer) -> None:
        self._ctx = ctx
        self.offer = offer
        self.started = ctx.now
        self._missing = dict.fromkeys(range(len(offer.hashes)))
        self._donors: dict[str, _Donor] = {}
        self._planned_at = 0.0
        self._asked_at = ctx.now
        """When the first request may have been sent."""
        self._looking = True
        """Nobody is asked yet: this host may have some of it already."""
        self.held = 0
        """Shards that this host had."""
        self._from: dict[str, int] = {}
        """Verified shards by who sent them."""
        self._fellows: dict[str, frozenset[int]] = {}
        """Learners that pull the same snapshot, and what they said to hold of it."""
        self._told: frozenset[int] = frozenset()
        """What this peer said last that it holds."""
        self.again = 0
        """Shards that were asked of a second donor while the first might still send them."""

    @property
    def complete(self) -> bool:
        return not self._missing

    @property
    def donors(self) -> list[str]:
        """Those that serve it now, in the order in which they came."""
        return list(self._donors)

    @property
    def has_donors(self) -> bool:
        """Whether anybody is there who has all of it."""
        return bool(self._whole())

    def _whole(self) -> list[str]:
        """Who has all of it. A donor that became a learner of the same snapshot, as its worker died, has not."""
        return sorted(peer for peer, d in self._donors.items() if d.may is None and peer not in self._fellows)

    def sources(self) -> dict[str, int]:
        """Bytes by donor, for people."""
        return {self._ctx.name(peer): count * self.offer.shard_bytes for peer, count in self._from.items()}

    @property
    def left_bytes(self) -> int:
        """Of the snapshot, still to come."""
        return min(len(self._missing) * self.offer.shard_bytes, self.offer.manifest.nbytes)

    def rate(self) -> float:
        """B/s that come of those who have sent something; 0 while nobody has."""
        size, now = self.offer.shard_bytes, self._ctx.now
        return sum(donor.arrivals.rate(now, size) for donor in self._donors.values() if donor.arrivals.measured)

    def on_held(self, shards: tuple[int, ...]) -> None:
        """What this host has already need not come."""
        self._looking, self._asked_at = False, self._ctx.now
        for shard in shards:
            if shard in self._missing:
                self.held += 1
                self._arrived(shard, None)
        if self._fellows and self.has_donors and not self.complete:
            self._share()
        self.plan(f"{self.held} of {len(self.offer.hashes)} shards were here")

    # --- donors --------------------------------------------------------------------------------------------

    def add(self, peer: str, measured: tuple[float, float] | None) -> None:
        """A donor more, with bytes per second and round-trip seconds of its link as far as known."""
        rate, rtt_s = measured or UNMEASURED
        if peer not in self._donors:
            self._donors[peer] = _Donor(Arrivals(rate or UNMEASURED[0]), rtt_s)
            if self._fellows and not self._looking:
                self._share()
            self.plan(f"{self._ctx.name(peer)} is a donor", worth=0.0)  # what it can do shows once it is asked

    def remove(self, peer: str, reason: str) -> None:
        """It is gone, or not to be trusted. The others take over what it had still to send."""
        self._fellows.pop(peer, None)
        if self._donors.pop(peer, None) is not None and self._donors:
            self.plan(f"without {self._ctx.name(peer)}: {reason}")

    def link_lost(self, peer: str) -> None:
        """Its link is down: the others go on with its part, until there is a way to it again."""
        donor = self._donors.get(peer)
        if donor is not None and not donor.cut:
            donor.cut = donor.afresh = True
            self.plan(f"the link to {self._ctx.name(peer)} is lost")

    def way_found(self, peer: str) -> None:
        """There is a new way to it; what was under way by the old one may be lost."""
        donor = self._donors.get(peer)
        if donor is None:
            return
        donor.cut, donor.afresh = False, True
        if donor.queue:
            self._ask(peer, donor, list(donor.queue))
        self.plan(f"a new way to {self._ctx.name(peer)}")

    # --- other learners ------------------------------------------------------------------------------------

    def tell(self, _peer: str) -> frozenset[int]:
        """What it holds, to be told to another learner: both plan with the same figures."""
        self._told = frozenset(range(len(self.offer.hashes))) - self._missing.keys()
        return self._told

    def share(self, peer: str, holds: frozenset[int]) -> None:
        """Another learner pulls the same snapshot and holds this of it already: the two serve each other."""
        self._fellows[peer] = holds
        if self.has_donors and not self.complete and not self._looking:
            self._share()
            self.plan(f"together with {self._ctx.name(peer)}")

    def _share(self) -> None:
        """Deal out anew by the plan that all these learners make, each for itself.

        They don't know each other's rates, so all are taken as equal; what really comes of it is up to `plan`.
        """
        donors = self._whole()
        holds = {**self._fellows, self._ctx.id: self._told}
        made = together.plan(
            len(self.offer.hashes),
            self.offer.shard_bytes,
            [PlannedDonor(name=peer, bandwidth=EQUAL) for peer in donors],
            [together.Joiner(name=peer, uplink=EQUAL, holds=holds[peer]) for peer in sorted(holds)],
        )
        asks = made.asks[self._ctx.id]
        wire = {s for peer, d in self._donors.items() for s in self._on_wire(d)}
        for peer in (*donors, *(fellow for fellow in self._fellows if fellow in asks)):
            if peer not in self._donors:
                rate, rtt_s = UNMEASURED
                self._donors[peer] = _Donor(Arrivals(rate), rtt_s)
            donor = self._donors[peer]
            wanted = [s for s in asks.get(peer, ()) if s in self._missing and s not in wire]
            if peer in self._fellows:
                donor.may = frozenset(wanted)
            self._ask(peer, donor, [*self._on_wire(donor), *wanted])
        self._ctx.trace("shards_together", step=self.offer.step, learners=len(holds), reason=made.reason)

    # --- shards --------------------------------------------------------------------------------------------

    def on_shard(self, event: ShardStored) -> None:
        """A verified shard. Whoever else was to send it need not any more."""
        if event.shard not in self._missing:
            return
        self._from[event.donor] = self._from.get(event.donor, 0) + 1
        sender = self._donors.get(event.donor)
        if sender is not None:
            sender.reminded = 0
            sender.arrivals.came(self._ctx.now, self.offer.shard_bytes)
        self._arrived(event.shard, sender)

    def _arrived(self, shard: int, sender: _Donor | None) -> None:
        del self._missing[shard]
        for donor in self._donors.values():
            if shard in donor.queue:
                del donor.queue[shard]
                donor.stale = donor.stale or donor is not sender
                if not donor.queue:
                    donor.arrivals.idle()

    # --- the plan ------------------------------------------------------------------------------------------

    def tick(self) -> list[str]:
        """Look at the plan again if it is time. Returns donors that have been silent for too long."""
        if not self._donors or self.complete:
            return []
        if self._ctx.now - self.started > LOOK_S:
            self._looking = False
        early = REPLAN_S if self._fellows else EARLY * (self._planned_at - self._asked_at)
        if self._ctx.now - self._planned_at < min(REPLAN_S, early):
            return []
        lost = [peer for peer, donor in self._donors.items() if self._overdue(peer, donor)]
        self.plan("progress")
        return lost

    def _overdue(self, peer: str, donor: _Donor) -> bool:
        """Nothing has come for long although it was asked: ask once more, as a link may have lost it; then give up."""
        limit = self._ctx.config.shard_timeout_s
        silent = donor.arrivals.silent_s(self._ctx.now)
        if silent <= limit * (donor.reminded + 1):
            return False
        donor.reminded += 1
        reason = f"no shard for {silent:.0f} s"
        self._ctx.trace("slow_donor", peer=self._ctx.name(peer), reason=reason)
        if donor.reminded >= LOST_AFTER:
            return True
        self.way_found(peer)
        return False

    def plan(self, why: str, worth: float = WORTH) -> None:
        """Deal out what is missing, and tell the donors whose part in it has changed."""
        self._planned_at = self._ctx.now
        if self._looking:
            return
        size = self.offer.shard_bytes
        sources = [self._source(peer, donor) for peer, donor in self._donors.items()]
        if self.complete or not any(source.donor.rate for source in sources if source.may is None):
            return
        made = replan(tuple(self._missing), size, sources, worth)
        again = set(made.again)
        self.again += len(again)
        for source, (peer, donor) in zip(sources, self._donors.items(), strict=True):
            wire = [shard for shard in source.queue[: source.on_wire] if shard not in again]
            asked = [*wire, *made.asks[source.donor.name]] if made.changed else list(donor.queue)
            if asked != list(donor.queue) or donor.stale:
                self._ask(peer, donor, asked)
        if made.changed:
            counts = {self._ctx.name(peer): len(donor.queue) for peer, donor in self._donors.items()}
            self._ctx.trace(
                "shard_plan",
                step=self.offer.step,
                shards=counts,
                missing=len(self._missing),
                again=len(again),
                finish_s=round(made.finish_s, 3),
                reason=f"{why}: {made.reason}",
            )

    def _source(self, peer: str, donor: _Donor) -> Source:
        rate = 0.0 if donor.cut else donor.arrivals.rate(self._ctx.now, self.offer.shard_bytes)
        planned = PlannedDonor(name=self._ctx.name(peer), bandwidth=rate, latency_s=donor.rtt_s)
        return Source(donor=planned, queue=tuple(donor.queue), on_wire=len(self._on_wire(donor)), may=donor.may)

    def _on_wire(self, donor: _Donor) -> list[int]:
        """What it has probably begun to send: the first in its queue, and as many more as fit into a round trip."""
        size = self.offer.shard_bytes
        rate = donor.arrivals.rate(self._ctx.now, size)
        return list(islice(donor.queue, 1 + int(rate * donor.rtt_s / size)))

    def _ask(self, peer: str, donor: _Donor, shards: list[int]) -> None:
        """Each request replaces the former one, but for what the donor has begun to send."""
        donor.queue = dict.fromkeys(shards)
        if shards:
            donor.arrivals.awaited(self._ctx.now, donor.rtt_s + (0.0 if donor.may is None else RELAY_S))
        else:
            donor.arrivals.idle()
        self._ctx.send(peer, ShardRequest(self.offer.step, tuple(shards), donor.afresh))
        donor.stale = donor.afresh = False


def to_bitmap(shards: frozenset[int]) -> bytes:
    """Bit i of byte i // 8 says that shard i is among them."""
    bits = bytearray(max(shards, default=-1) // 8 + 1)
    for shard in sorted(shards):
        bits[shard // 8] |= 1 << shard % 8
    return bytes(bits)


def from_bitmap(bits: bytes, count: int) -> frozenset[int]:
    """The shards below `count` whose bit is set."""
    return frozenset(shard for shard in range(min(count, 8 * len(bits))) if bits[shard // 8] >> shard % 8 & 1)
