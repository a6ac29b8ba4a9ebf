"""Random faults: each is drawn from its own seed (run, number), so that leaving one out leaves the others alike."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from chaos.core.context import Role
from chaos.sim.faults import Faults
from chaos.sim.network import Pair, pair_of
from chaos.sim.peer import ClockSkew, SimPeer

DURATIONS = (0.2, 1.5, 4.0, 9.0)
"""Seconds that faults last: not noticed, in doubt, suspected, and gone from the view for long."""

Note = Callable[[float, str, str], None]
Draw = Callable[[Random], str]
"""Does something and says what; says nothing if nothing of this kind can be done now."""


class Schedule:
    """Draws faults for a world with at most `most` living peers, and notes (time, kind, what) of each."""

    def __init__(self, faults: Faults, note: Note, most: int, skewed: bool, joins_only: bool = False) -> None:
        self._world = faults.world
        self._faults = faults
        self._note = note
        self._most = most
        self._skewed = skewed
        self._next = 1
        joins: dict[str, tuple[int, Draw]] = {"join": (5, self.join), "joins": (1, self._joins)}
        self._kinds = joins if joins_only else joins | {
            "crash": (4, lambda r: self._crash(r, 1)),
            "crash_two": (2, lambda r: self._crash(r, 2)),
            "crash_between_actions": (3, self._crash_between),
            "host_lost": (1, self._lose_host),
            "restart": (2, self._restart),
            "worker": (4, lambda r: self._workers(r, 1)),
            "worker_two": (2, lambda r: self._workers(r, 2)),
            "crash_and_worker": (2, self._mixed),
            "leave": (2, self._leave),
            "connection_lost": (2, self._reset),
            "link_cut": (2, self._cut),
            "link_flaps": (1, self._flap),
            "link_by_order": (1, self._order_link),
            "isolated": (1, self._isolate),
            "partition": (2, self._partition),
            "one_way": (2, self._one_way),
            "delay": (1, self._delay),
            "freeze": (2, self._freeze),
            "slow": (1, self._slow),
            "corrupt_shards": (1, self._corrupt_shards),
            "bit_flip": (1, self._flip_bit),
            "stranger": (1, self._strange),
        }  # fmt: skip

    def draw(self, random: Random, only: tuple[str, ...] = ()) -> None:
        """One fault of a kind that is possible now, of all kinds or of `only` these."""
        kinds = [kind for kind in self._kinds if not only or kind in only]
        weights = [self._kinds[kind][0] for kind in kinds]
        for kind in random.choices(kinds, weights, k=4):
            done = self._kinds[kind][1](random)
            if done:
                self._note(self._world.now, kind, done)
                return

    def new_clock(self, random: Random) -> ClockSkew:
        return ClockSkew(random.uniform(0, 1e5), random.uniform(0.97, 1.03)) if self._skewed else ClockSkew()

    # --- who may be hit ------------------------------------------------------------------------------------

    def _trained(self) -> list[SimPeer]:
        """Members of the newest view whose workers hold the state: without one of them, the run is lost."""
        members = self._world.members()
        newest = max((p.node.ctx.view.id for p in members), default=0)
        return [p for p in members if p.node.ctx.view.id == newest and self._holds_state(p)]

    def _holds_state(self, peer: SimPeer) -> bool:
        worker = peer.node.worker.worker
        holds = worker is not None and worker.applied is not None and peer.worker.alive
        return holds and peer in self._faults.staying() and peer.crash_after is None

    def spare(self, victims: list[SimPeer]) -> bool:
        """Whether the run can live without these: a quorum of present members that hold the state stays.

        A host that is lost for ever takes its vote with it, so those must stay few.
        """
        left = [p for p in self._trained() if p not in victims]
        return len(left) >= 2 or (len(left) == 1 and not self._faults.lost_hosts)

    def _victims(self, random: Random, count: int) -> list[SimPeer]:
        living = self._faults.living()
        victims = random.sample(living, count) if len(living) > count else []
        return victims if self.spare(victims) else []

    def _links(self) -> list[Pair]:
        return sorted(self._world.network.links)

    def _others(self, peer: SimPeer) -> list[str]:
        return [p.id for p in self._faults.living() if p is not peer]

    # --- peers ---------------------------------------------------------------------------------------------

    def join(self, random: Random) -> str:
        contacts = [p for p in self._faults.staying() if p.node.ctx.role == Role.MEMBER]
        if not contacts or len(self._faults.living()) >= self._most:
            return ""
        contact = random.choice(contacts)
        self._faults.join(self._next, contact.index, self.new_clock(random))
        self._next += 1
        return f"p{self._next - 1} joins at {contact.info.name}"

    def _joins(self, random: Random) -> str:
        return "; ".join(said for _ in range(random.randrange(2, 5)) if (said := self.join(random)))

    def _crash(self, random: Random, count: int) -> str:
        victims = self._victims(random, count)
        for victim in victims:
            self._faults.crash(victim, random.uniform(0.1, 4.0) if random.random() < 0.4 else None)
        return " and ".join(f"{v.info.name} is killed" for v in victims)

    def _crash_between(self, random: Random) -> str:
        victims, actions = self._victims(random, 1), random.randrange(1, 25)
        for victim in victims:
            self._faults.crash_between(victim, actions)
        return " and ".join(f"{v.info.name} dies after {actions} actions" for v in victims)

    def _lose_host(self, random: Random) -> str:
        victims = self._victims(random, 1)
        if not victims or self._faults.lost_hosts or len(self._trained()) < 4:
            return ""
        dark = random.random() < 0.7
        self._faults.lose_host(victims[0], dark)
        return f"{victims[0].info.name}'s host is lost{' without a word' if dark else ''}"

    def _restart(self, random: Random) -> str:
        victims = self._victims(random, 1)
        contacts = [p for p in self._faults.staying() if p.node.ctx.role == Role.MEMBER and p not in victims]
        if not victims or not contacts:
            return ""
        after = random.uniform(0.05, 3.0)
        self._faults.restart(victims[0], random.choice(contacts).index, after)
        return f"{victims[0].info.name} is killed and starts again after {after:.2f} s"

    def _workers(self, random: Random, count: int) -> str:
        candidates = [p for p in self._faults.living() if p.worker.alive and not p.worker.ended]
        victims = random.sample(candidates, count) if len(candidates) >= count else []
        if not self.spare(victims):
            return ""
        for victim in victims:
            self._faults.kill_worker(victim, random.uniform(0.01, 1.0))
        return " and ".join(f"{v.info.name}'s worker is killed" for v in victims)

    def _mixed(self, random: Random) -> str:
        """An agent and another peer's worker in one moment."""
        victims = self._victims(random, 2)
        if not victims or not victims[1].worker.alive or victims[1].worker.ended:
            return ""
        self._faults.crash(victims[0])
        self._faults.kill_worker(victims[1], random.uniform(0.01, 1.0))
        return f"{victims[0].info.name} and {victims[1].info.name}'s worker are killed"

    def _leave(self, random: Random) -> str:
        candidates = self._faults.staying()
        leaver = random.choice(candidates) if len(candidates) > 2 else None
        if leaver is None or not self.spare([leaver]):
            return ""
        self._faults.leave(leaver)
        return f"{leaver.info.name} is asked to leave"

    def _freeze(self, random: Random) -> str:
        victim, seconds = random.choice(self._faults.living()), random.choice(DURATIONS)
        self._faults.freeze(victim, seconds)
        return f"{victim.info.name} is stopped for {seconds} s"

    def _slow(self, random: Random) -> str:
        victim, factor = random.choice(self._faults.living()), random.choice([2.0, 5.0])
        self._faults.slow(victim, random.choice([0.0, 0.0005, 0.001]), factor, random.choice([0.5, 2.0]))
        return f"{victim.info.name} is {factor} times slower"

    # --- network -------------------------------------------------------------------------------------------

    def _reset(self, random: Random) -> str:
        links = self._links()
        hit = random.sample(links, min(len(links), random.randrange(1, 4)))
        self._faults.reset(hit)
        return f"{len(hit)} links are reset" if hit else ""

    def _cut(self, random: Random) -> str:
        links, seconds = self._links(), random.choice([0.01, 0.3, 2.0, 6.0])
        if not links:
            return ""
        pair = random.choice(links)
        self._faults.cut([pair], seconds)
        return f"link {pair[0][-2:]}-{pair[1][-2:]} is cut for {seconds} s"

    def _order_link(self, random: Random) -> str:
        """Only where there are more links: a cut that splits the overlay can be undone from one side only."""
        able = {p.id: p for p in self._faults.staying() if not p.frozen and p.node.ctx.role == Role.MEMBER}
        links, seconds = [pair for pair in self._links() if able.keys() >= set(pair)], random.choice(DURATIONS)
        if len(links) < 3:
            return ""
        ends = [able[peer] for peer in random.choice(links)]
        self._faults.order_link(ends[0], ends[1].id, seconds)
        return f"the link of {ends[0].info.name} and {ends[1].info.name} is cut by order for {seconds} s"

    def _flap(self, random: Random) -> str:
        links, times = self._links(), random.randrange(3, 8)
        if not links:
            return ""
        pair = random.choice(links)
        self._faults.flap(pair, times, random.choice([0.1, 0.6, 1.5]))
        return f"link {pair[0][-2:]}-{pair[1][-2:]} flaps {times} times"

    def _isolate(self, random: Random) -> str:
        """A host drops off the network, and all know at once."""
        victim, seconds = random.choice(self._faults.living()), random.choice(DURATIONS)
        self._faults.cut([pair_of(victim.id, other) for other in self._others(victim)], seconds)
        return f"{victim.info.name} is unplugged for {seconds} s"

    def _partition(self, random: Random) -> str:
        living, seconds = self._faults.living(), random.choice(DURATIONS)
        if len(living) < 2:
            return ""
        group = random.sample(living, random.randrange(1, len(living)))
        self._faults.partition([p.id for p in group], seconds)
        return f"{', '.join(p.info.name for p in group)} are cut off in silence for {seconds} s"

    def _one_way(self, random: Random) -> str:
        living, seconds = self._faults.living(), random.choice(DURATIONS)
        if len(living) < 2:
            return ""
        victim = random.choice(living)
        others = self._others(victim)
        others = random.sample(others, random.choice([1, len(others)]))
        away = random.random() < 0.5
        self._faults.block([(victim.id, o) if away else (o, victim.id) for o in others], seconds)
        return f"nothing {'from' if away else 'to'} {victim.info.name} arrives at {len(others)} for {seconds} s"

    def _delay(self, random: Random) -> str:
        links, seconds = self._links(), random.choice(DURATIONS)
        hit = random.sample(links, random.randrange(1, len(links) + 1)) if links else []
        extra = random.choice([0.05, 0.3, 1.0])
        self._faults.delay([d for a, b in hit for d in ((a, b), (b, a))], extra, seconds)
        return f"{len(hit)} links are up to {extra} s slower for {seconds} s" if hit else ""

    # --- bytes, strangers ----------------------------------------------------------------------------------

    def _corrupt_shards(self, random: Random) -> str:
        if all(p.node.ctx.role == Role.MEMBER for p in self._faults.living()):
            return ""
        count = random.randrange(1, 4)
        self._faults.corrupt_shards(count)
        return f"the next {count} shards arrive damaged"

    def _flip_bit(self, random: Random) -> str:
        victim = random.choice(self._faults.living())
        if not self.spare([victim]):
            return ""
        self._faults.flip_bit(victim, random.randrange(1, 5))
        return f"a bit flips at {victim.info.name}"

    def _strange(self, random: Random) -> str:
        victim = random.choice(self._faults.living())
        self._faults.strange(victim, random.randrange(5, 60))
        return f"a stranger talks to {victim.info.name}"
