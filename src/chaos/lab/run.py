"""One run of a scenario: start all, let happen what is to happen, repair everything, see all back, and end."""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from chaos.core.errors import ChaosError
from chaos.lab.carrier import Traffic
from chaos.lab.faults import Done, Faults
from chaos.lab.hosts import Hosts
from chaos.lab.network import Network
from chaos.lab.scenario import Fault
from chaos.observe.trace_file import Entry, TraceFiles

LOOK_S = 0.05
"""Between two looks at the traces."""
FOUND_S = 90.0
"""By then all initial hosts are members; on a busy machine nine of them import torch for a minute."""
CALM_S = 120.0
"""By then all are members again once everything is repaired: eight joiners that start at once import torch for 40 s on
two cores."""
PATIENCE_S = 120.0
"""Without a step for so long a script of the user's own is stuck."""
END_S = 60.0
MARGIN = 25
"""Steps that all have left when they are told where to end."""

Tell = Callable[[str], None]


@dataclass
class LabResult:
    """What came of it, before anybody has judged the traces."""

    entries: list[Entry]
    """All peers' traces, in order of time."""
    done: list[Done]
    broken: list[str]
    """Promises that were broken, as far as it shows from outside."""
    exit_codes: dict[str, int | None]
    traffic: dict[tuple[int, int], Traffic]
    late_s: float
    """How late the wire delivered a packet at worst: a busy machine."""
    usage: dict[str, tuple[float, int]]
    """Per peer: processor seconds of agent and worker, and the agent's memory in bytes."""
    began: float
    """When all initial hosts were members, on the monotonic clock."""
    remarks: list[str] = field(default_factory=list)


@dataclass
class _Standing:
    """What a peer's trace says it is."""

    role: str = ""
    members: frozenset[str] = frozenset()
    step: int = 0


class Lab:
    """A scenario on hosts that are there. `run` once."""

    def __init__(self, hosts: Hosts, tell: Tell) -> None:
        self._hosts = hosts
        self._scenario = hosts.scenario
        self._tell = tell
        self._network = Network(hosts.wire, hosts.scenario)
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._number = count()
        self._faults = Faults(hosts, self._network, self._later)
        numbers = range(len(self._scenario.hosts))
        self._files = TraceFiles({hosts.name(n): hosts.trace(n) for n in numbers})
        self._standing = {hosts.name(n): _Standing() for n in numbers}
        self._entries: list[Entry] = []
        self._done: list[Done] = []
        self._ripe: deque[Fault] = deque()
        """Faults whose time has come."""
        self._broken: list[str] = []
        self._late_s = 0.0

    @property
    def step(self) -> int:
        """The newest that was committed somewhere."""
        return max(standing.step for standing in self._standing.values())

    def run(self) -> LabResult:
        """Raises ChaosError if the run can't even begin, or a fault can't be done."""
        self._found()
        began = time.monotonic()
        if self._scenario.redraw_s:
            self._later(self._scenario.redraw_s, self._redraw)
        self._befall(began)
        if self._scenario.script:
            self._until(self._all_ended, PATIENCE_S, "the scripts end", while_steps=True)
        else:
            self._calm_down()
            self._stop()
        self._look()
        traffic, _ = self._hosts.wire.traffic()
        peers = self._hosts.peers
        codes = {peer.name: peer.exit_code() for peer in peers.values()}
        for host in sorted(self._faults.present | self._faults.left):
            if codes[self._hosts.name(host)] != 0:
                self._broken.append(f"{self._hosts.name(host)} ended with exit code {codes[self._hosts.name(host)]}")
        return LabResult(
            sorted(self._entries, key=lambda entry: entry.t), self._done, self._broken, codes, traffic, self._late_s,
            {peer.name: peer.usage() for peer in peers.values()}, began, self._hosts.remarks,
        )  # fmt: skip

    # --- the story -----------------------------------------------------------------------------------------

    def _found(self) -> None:
        """Start the initial hosts, each by way of those neighbours that are there already."""
        scenario = self._scenario
        waiting = [n for n, host in enumerate(scenario.hosts) if not host.late]
        self._faults.start(0, [], "--min-peers", str(len(waiting)), *scenario.options)
        self._hosts.peers[0].address()
        waiting.remove(0)
        while waiting:
            ready = [n for n in waiting if self._contacts(n)]
            if not ready:
                raise ChaosError(f"{self._hosts.name(waiting[0])} has no way to the founder; add a [[link]]")
            for host in ready:
                self._faults.start(host, self._contacts(host))
                waiting.remove(host)
        self._until(self._all_back, FOUND_S, "all initial hosts are members")
        if self._broken:
            raise ChaosError(f"the scenario did not begin: {self._broken[0]}; see the logs in {self._hosts.out}")
        self._tell(f"{len(self._faults.present)} hosts train together")

    def _contacts(self, host: int) -> list[int]:
        return [other for other in self._network.neighbours(host) if other in self._faults.present]

    def _befall(self, began: float) -> None:
        """All faults at their times or steps, and what follows from them."""
        timed = sorted((f for f in self._scenario.fault if not f.step), key=lambda f: f.at)
        stepped = sorted((f for f in self._scenario.fault if f.step), key=lambda f: f.step)
        for fault in timed:
            self._later(began + fault.at - time.monotonic(), lambda fault=fault: self._ripe.append(fault))  # type: ignore[misc]
        for fault in stepped:
            if not self._until(lambda: self.step >= fault.step, FOUND_S, f"step {fault.step}"):  # noqa: B023
                return
            self._do(fault)
        last = max((began + fault.at for fault in timed), default=began)
        while time.monotonic() < last or self._waiting() or self._ripe:
            self._pass()
            if self._ripe and self._scenario.one_by_one:
                self._until(self._all_back, CALM_S, f"all are members before '{self._ripe[0].do}'")
            if self._ripe:
                self._do(self._ripe.popleft())

    def _waiting(self) -> bool:
        """Whether something is still to come, other than drawing rates anew for ever."""
        return len(self._due) > bool(self._scenario.redraw_s)

    def _do(self, fault: Fault) -> None:
        names = tuple(self._hosts.name(self._scenario.number(who)) for who in fault.peers)
        self._tell(f"step {self.step}: {fault.do} {' '.join(names)}")
        self._done.append(Done(time.monotonic(), fault.do, names, fault))
        self._faults.do(fault)
        if fault.do in ("crash", "kill_worker"):
            self._look()
            self._standing[names[0]].role = ""  # what it was a moment ago says nothing about its being back

    def _calm_down(self) -> None:
        """Everything is repaired: all must be back, and steps go on."""
        self._faults.heal()
        self._until(self._all_back, CALM_S, "all are members once everything is repaired")
        least = max(self._scenario.steps, self.step + 2)
        self._until(lambda: self.step >= least, FOUND_S, f"step {least} is reached", while_steps=True)

    def _stop(self) -> None:
        part = self._hosts.stop_file.with_suffix(".part")
        part.write_text(str(self.step + MARGIN))
        part.rename(self._hosts.stop_file)
        self._until(self._all_ended, END_S, "all end", while_steps=True)

    # --- watching ------------------------------------------------------------------------------------------

    def _all_back(self) -> bool:
        """All that are to be there are members, by the word of each of them."""
        names = frozenset(self._hosts.name(host) for host in self._faults.present)
        standings = [self._standing[name] for name in names]
        return all(s.role == "member" and s.members == names and s.step for s in standings)

    def _all_ended(self) -> bool:
        wanted = self._faults.present | self._faults.left
        return all(self._hosts.peers[host].exit_code() is not None for host in wanted)

    def _until(self, condition: Callable[[], bool], seconds: float, what: str, while_steps: bool = False) -> bool:
        """Wait for it; what never comes is a broken promise.

        Args:
            while_steps: so long without a step, instead of so long at all.
        """
        deadline, step = time.monotonic() + seconds, self.step
        while not condition():
            if while_steps and self.step > step:
                deadline, step = time.monotonic() + seconds, self.step
            if time.monotonic() > deadline or self._failed():
                self._broken.append(f"not within {seconds:g} s: {what}")
                return False
            self._pass()
        return True

    def _failed(self) -> bool:
        """Whether a peer ended that was to stay."""
        codes = [self._hosts.peers[host].exit_code() for host in self._faults.present]
        return any(code not in (None, 0) for code in codes)

    def _pass(self) -> None:
        """Do what is due, and look at the traces."""
        while self._due and self._due[0][0] <= time.monotonic():
            heapq.heappop(self._due)[2]()
        self._look()
        time.sleep(LOOK_S)

    def _look(self) -> None:
        for entry in self._files.read():
            self._entries.append(entry)
            standing = self._standing[entry.peer]
            if entry.kind == "trace":
                self._standing[entry.peer] = _Standing(step=standing.step)  # another incarnation
            elif entry.kind == "view":
                standing.role, standing.members = entry["role"], frozenset(entry["members"])
            elif entry.kind == "commit":
                standing.step = entry["step"]
        for peer in self._hosts.peers.values():
            if peer.exit_code() is None:
                peer.usage()
        self._late_s = max(self._late_s, self._hosts.wire.traffic()[1])

    def _later(self, seconds: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._due, (time.monotonic() + seconds, next(self._number), what))

    def _redraw(self) -> None:
        self._network.redraw()
        self._later(self._scenario.redraw_s, self._redraw)
