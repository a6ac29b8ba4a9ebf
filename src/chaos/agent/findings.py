"""What `chaos doctor` makes of what it found: one line each, with the remedy. Pure: facts in, findings out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

OK_DAYS = 30
"""A certificate that is good for less is worth a warning: peers renew theirs so long before their end."""
CLOCK_WARNING_S, CLOCK_PROBLEM_S = 60.0, 3600.0
"""Only certificates compare wall clocks; they are made valid from an hour ago on."""
RTT_WARNING_S, RTT_PROBLEM_S = 0.15, 1.0
"""Steps wait for two crossings; at a second, agreement takes longer than the detector allows a peer to be silent."""
RATE_WARNING, RATE_PROBLEM = 1.25e6, 0.1e6
"""Bytes per second: 10 Mbit/s; and where one gradient of a small model takes minutes."""
MTU_WARNING, MTU_PROBLEM = 1400, 1280
"""Bytes: below what common tunnels leave of Ethernet's 1500; the least that IPv6 allows."""
MEMORY_WARNING, MEMORY_PROBLEM = 4 * 2**30, 2**30
"""Bytes. A peer keeps three gradients, a snapshot and its results in shared memory, besides what the script takes."""
FILES_WARNING, FILES_PROBLEM = 1024, 256
"""Descriptors of a process: three per link, some dozens besides."""
DISK_FACTOR = 4
"""Three checkpoints are kept while the next one is written."""
DISK_WARNING, DISK_PROBLEM = 10 * 2**30, 2**30
"""Bytes free, where no checkpoint tells how large one is."""


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """One line. `remedy` is empty if all is well."""

    what: str
    level: Level
    text: str
    remedy: str = ""


def graded(what: str, text: str, bad: bool, doubtful: bool, remedy: str) -> Finding:
    level = Level.PROBLEM if bad else Level.WARNING if doubtful else Level.OK
    return Finding(what, level, text, remedy if level != Level.OK else "")


def certificate(what: str, starts: datetime, ends: datetime, now: datetime, remedy: str) -> Finding:
    """Dates of a root or leaf."""
    if starts > now:
        text = f"valid only from {starts:%Y-%m-%d %H:%M} UTC; this host's clock says {now:%Y-%m-%d %H:%M}"
        return Finding(what, Level.PROBLEM, text, "set this host's clock (NTP)")
    left = ends - now
    text = f"expired on {ends:%Y-%m-%d}" if left <= timedelta(0) else f"valid to {ends:%Y-%m-%d} ({left.days} days)"
    return graded(what, text, left <= timedelta(0), left < timedelta(days=OK_DAYS), remedy)


def clock(offset_s: float, member: str) -> Finding:
    """`offset_s`: how far the member's wall clock is ahead of this one's."""
    ahead = f"{abs(offset_s):.1f} s {'behind' if offset_s > 0 else 'ahead of'} {member}'s"
    bad, doubtful = abs(offset_s) > CLOCK_PROBLEM_S, abs(offset_s) > CLOCK_WARNING_S
    return graded("clock", ahead, bad, doubtful, "set the clock of the host that is wrong (NTP)")


def addresses(advertised: Sequence[str], interfaces: Mapping[str, str], used: str | None) -> Finding:
    """What others are told. `interfaces`: address to interface; `used`: the local one that leads to a member."""
    named = ", ".join(f"{a} ({interfaces.get(host_of(a), 'given')})" for a in advertised) or "none"
    outside = [a for a in advertised if not host_of(a).startswith("127.") and host_of(a) != "::1"]
    remote = used is not None and not used.startswith("127.") and used != "::1"
    if not outside and (remote or used is None):
        bad = remote
        remedy = "let others reach this host: --listen 0.0.0.0:PORT, and --advertise HOST:PORT behind a router"
        return graded("addresses", f"others are told {named}, which only this host reaches", bad, True, remedy)
    if remote and outside and host_of(outside[0]) != used:
        text = f"others are told {named}; the way to the run leads over {used} ({interfaces.get(str(used), 'unknown')})"
        return Finding("addresses", Level.WARNING, text, f"name the right one: --advertise {used}:PORT")
    return Finding("addresses", Level.OK, f"others are told {named}")


def host_of(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


def interface_mtu(interface: str, mtu: int) -> Finding:
    remedy = f"raise the MTU of {interface}, or of the tunnel behind it: small packets cost processor time"
    return graded("MTU", f"{mtu} bytes on {interface}", mtu < MTU_PROBLEM, mtu < MTU_WARNING, remedy)


def memory(available: int, failure: str) -> Finding:
    """`failure`: why shared memory can't be made; empty if it can."""
    if failure:
        return Finding("shared memory", Level.PROBLEM, failure, "allow memfd_create and sealing for this process")
    remedy = "free memory, or raise the limit of the container: gradients, results and snapshots lie there"
    bad, doubtful = available < MEMORY_PROBLEM, available < MEMORY_WARNING
    return graded("shared memory", f"{gib(available)} available", bad, doubtful, remedy)


def files(limit: int) -> Finding:
    remedy = "raise it: ulimit -n 65536"
    return graded(
        "open files", f"{limit} per process", limit < FILES_PROBLEM, limit < FILES_WARNING, remedy
    )  # fmt: skip


def versions(own: Mapping[str, str], theirs: Mapping[str, str] | None, member: str = "") -> Finding:
    """Of chaos, python and torch; `theirs` is None where nobody was asked."""
    text = ", ".join(f"{name} {version}" for name, version in own.items())
    if own["torch"] == "none":
        return Finding("versions", Level.PROBLEM, text, "install torch in this environment: the worker needs it")
    if theirs is None:
        return Finding("versions", Level.OK, text)
    for name, level in (("torch", Level.PROBLEM), ("chaos", Level.WARNING), ("python", Level.WARNING)):
        if own[name] != theirs.get(name):
            other = f"{text}; {member} has {name} {theirs.get(name, 'of an unknown version')}"
            remedy = (
                "a run admits equal versions of torch only" if name == "torch" else "equal ones are tested together"
            )
            return Finding("versions", level, other, f"install the same {name} on both: {remedy}")
    return Finding("versions", Level.OK, f"{text}, as {member}")


def disk(place: str, free: int, newest: int | None, failure: str) -> Finding:
    """For checkpoints. `newest`: bytes of the newest one there; `failure`: why nothing can be written."""
    if failure:
        return Finding("checkpoints", Level.PROBLEM, f"{place}: {failure}", "name another place: --checkpoint DIR")
    remedy = "free space there, or name another place: --checkpoint DIR"
    if newest is None:
        text = f"{gib(free)} free at {place}"
        return graded("checkpoints", text, free < DISK_PROBLEM, free < DISK_WARNING, remedy)
    text = f"{gib(free)} free at {place}; the newest one takes {gib(newest)}"
    return graded("checkpoints", text, free < newest, free < DISK_FACTOR * newest, remedy)


def reached(member: str, tried: Sequence[tuple[str, str]]) -> Finding:
    """Whether this host reaches a member: its addresses in order, each with why not ('' if it answered)."""
    what, failed = f"to {member}", [f"{address}: {reason}" for address, reason in tried if reason]
    answered = [address for address, reason in tried if not reason]
    if not answered:
        text = "; ".join(failed) or "it advertises no address"
        return Finding(
            what, Level.PROBLEM, text, "open the port in the firewalls on the way, or have it use --advertise"
        )
    remedy = "have it name the address that works first: --advertise; the others cost a time-out each"
    return graded(what, f"answers at {answered[0]}", False, bool(failed), remedy)


def dialed_back(member: str, told: Mapping[str, str]) -> Finding:
    """Whether a member reaches this host: addresses that it tried, each with why not ('' if it got through)."""
    what = f"from {member}"
    through = [address for address, reason in told.items() if not reason]
    failed = [f"{address}: {reason}" for address, reason in told.items() if reason]
    if not through:
        remedy = "open the port here (--listen HOST:PORT) or forward one (--advertise); without, others relay for you"
        return Finding(what, Level.PROBLEM, "; ".join(failed) or "nothing to dial", remedy)
    text = f"reaches {', '.join(through)}" + (f", not {'; '.join(failed)}" if failed else "")
    return graded(what, text, False, bool(failed), "leave out what does not work: name the rest by --advertise")


def line(member: str, rtt_s: float, up: float, down: float) -> Finding:
    """Round trip in seconds, rates in bytes per second: what one connection carried for some megabytes."""
    slow = min(up, down)
    text = f"{rtt_s * 1000:.1f} ms, {up / 1e6:.1f} MB/s there and {down / 1e6:.1f} MB/s back over one connection"
    bad, doubtful = rtt_s > RTT_PROBLEM_S or slow < RATE_PROBLEM, rtt_s > RTT_WARNING_S or slow < RATE_WARNING
    remedy = "use the better line of the two hosts, or expect every step to wait for this one"
    return graded(f"line to {member}", text, bad, doubtful, remedy)


def gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:.1f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.0f} MiB"
