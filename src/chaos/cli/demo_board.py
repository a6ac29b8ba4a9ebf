"""What a viewer of the demo sees: the run's standing and recent events in plain words, kept from the peers' traces."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from chaos.observe.trace_file import Entry

RECENT_EVENTS = 8
RECENT_LOSSES = 60


@dataclass
class PeerLine:
    """One peer, as far as its trace tells."""

    name: str
    party: str
    role: str = "starting"
    """'starting', 'learner', 'member', 'leaver', 'killed', 'left' or 'done'."""
    joined: bool = False
    """It was a member at some time."""
    step: int = 0
    compute_s: float = 0.0
    """What the user's code took for the last step."""
    wait_s: float = 0.0
    """How long the last step then kept its worker waiting."""


@dataclass
class Board:
    """The run's standing."""

    steps: int
    """Where the run is to end."""
    step: int = 0
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_LOSSES))
    members: tuple[str, ...] = ()
    view: int = 0
    peers: dict[str, PeerLine] = field(default_factory=dict)
    events: deque[str] = field(default_factory=lambda: deque(maxlen=RECENT_EVENTS))
    told: int = 0
    """Number of events so far."""
    _stands: dict[str, tuple[int, float]] = field(default_factory=dict)

    def add_peer(self, name: str, party: str) -> None:
        """A peer was started."""
        self.peers[name] = PeerLine(name, party)

    def set_role(self, name: str, role: str) -> None:
        """Something was done to a peer that it can't tell itself."""
        self.peers[name].role = role

    def tell(self, text: str) -> None:
        """Add an event."""
        self.events.append(f"step {self.step}: {text}" if self.step else text)
        self.told += 1

    def take(self, entries: Iterable[Entry]) -> None:
        """Entries in order of time."""
        for entry in entries:
            self._take_one(entry)
            if (text := in_words(entry)) is not None and entry.kind != "view":
                self.tell(text)

    def _take_one(self, entry: Entry) -> None:
        peer = self.peers[entry.peer]
        match entry.kind:
            case "boundary":
                peer.compute_s = entry["compute_s"]
                self._stands[peer.name] = (entry["applied"] + 1, entry.t)
            case "commit":
                self._committed(peer, entry)
            case "view":
                peer.role = entry["role"]
                peer.joined = peer.joined or peer.role == "member"
                if entry["view"] > self.view:
                    self.view, self.members = entry["view"], tuple(entry["members"])
                    self.tell(str(in_words(entry)))
            case "stop" if peer.role != "killed":
                peer.role = "done" if self.step >= self.steps else "left"

    def _committed(self, peer: PeerLine, entry: Entry) -> None:
        peer.step = entry["step"]
        step, since = self._stands.pop(peer.name, (0, 0.0))
        if step == peer.step:
            peer.wait_s = entry.t - since
        if peer.step > self.step:
            self.step = peer.step
            if entry["loss"] is not None:
                self.losses.append(entry["loss"])


def in_words(entry: Entry) -> str | None:
    """An entry for people who do not know the protocol; None for what would only flood them."""
    match entry.kind:
        case "view":
            count = len(entry["members"])
            return f"{entry['reason']}; {count} member{'s' if count != 1 else ''}"
        case "worker_died":
            return f"the worker of {entry.peer} died: {entry['reason']}"
        case "fetched_state":
            megabytes = entry["bytes"] / 1e6
            return f"{entry.peer} has the state of step {entry['step']}: {megabytes:.1f} MB from {sources(entry)}"
        case "digests_equal":
            return f"{entry.peer} compared its state of step {entry['step']} with a member's: equal"
        case "digests_differ":
            return f"{entry.peer} compared its state of step {entry['step']} with a member's: it differs"
        case "paused":
            return f"{entry.peer} pauses: {entry['reason']}"
        case "diverged" | "rejoin":
            return f"{entry.peer} takes the run's state anew"
    return None


def sources(entry: Entry) -> str:
    """How many donors gave a joiner its state."""
    count = len(entry["sources"])
    return f"{count} donor{'s' if count != 1 else ''}"
