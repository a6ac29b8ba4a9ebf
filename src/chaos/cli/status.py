"""`chaos status`: what one peer knows of its run, for people."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from chaos.core.errors import ChaosError

ADDRESS = "CHAOS_ADDRESS"
"""Environment variable: the peer that `status` and `leave` talk to if none is named."""


def choose_address(given: str | None, environment: Mapping[str, str], local: list[str], alone: bool) -> str:
    """Whom to ask: the address given, else CHAOS_ADDRESS, else a peer of this user on this host.

    Args:
        local: addresses of this user's peers on this host.
        alone: refuse to choose among several of them.

    Raises:
        ChaosError: there is none, or more than one.
    """
    if given or environment.get(ADDRESS):
        return given or environment[ADDRESS]
    if not local:
        raise ChaosError(f"no peer of yours runs on this host; give HOST:PORT of a member, or set {ADDRESS}")
    if alone and len(local) > 1:
        raise ChaosError(f"several peers of yours run on this host ({', '.join(local)}); give the address of one")
    return local[0]


def ask_address(given: str | None, alone: bool) -> str:
    """`choose_address` with this process's environment and this host's peers."""
    from chaos.agent.client import local_addresses  # here, as it loads TLS, which most commands do without

    return choose_address(given, os.environ, local_addresses(), alone)


def picture(status: Mapping[str, Any]) -> Group:
    """What `chaos.agent.client.request_status` answered."""
    facts = Table.grid(padding=(0, 2))
    facts.add_row("run", f"{status['run'] or 'none yet'}")
    facts.add_row("peer", f"{status['peer']}, {_role(status)}")
    facts.add_row("view", f"{status['view']}")
    facts.add_row("step", f"{status['step']}, stable up to {status['stable']}, epoch {status['epoch']}")
    if status["paused"]:
        paused = status["paused"]
        facts.add_row("paused", Text(f"for {paused['seconds']:.0f} s: {paused['reason']}", style="red"))
    if status["straggler_limit_s"]:
        facts.add_row("late workers", f"left out of a step, after {status['straggler_limit_s']:g} s at the latest")
    if status["other_lineages"]:
        others = ", ".join(f"{name} follows {lineage}" for name, lineage in status["other_lineages"].items())
        facts.add_row("another run", Text(f"{others}; here {status['lineage']}", style="red"))
    if status["missing_parties"]:
        facts.add_row("missing", Text(status["missing_parties"], style="yellow"))
    if status["catch_up"]:
        facts.add_row("catches up", status["catch_up"])
    if status["cut"]:
        facts.add_row("links cut", ", ".join(" - ".join(ends) for ends in status["cut"]))
    members = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("name", "role", "party", "step", "sums", "left out", "address", "linked to"):
        members.add_column(title, overflow="fold")
    for member in status["members"]:
        members.add_row(*_cells(member))
    links = Table(box=None, pad_edge=False, header_style="dim")
    for title in (f"{status['peer']}'s links", "address", "round trip", "rate"):
        links.add_column(title)
    for name, link in status["links"].items():
        links.add_row(name, link["address"], _round_trip(link["rtt_ms"]), _rate(link["bytes_per_s"]))
    return Group(facts, Text(""), members, Text(""), links)


def _role(status: Mapping[str, Any]) -> str:
    phase = status["learner_phase"]
    return f"{status['role']} ({phase})" if status["role"] == "learner" else str(status["role"])


def _cells(member: Mapping[str, Any]) -> list[str]:
    role = member["role"] + (", suspected" if member["suspect"] else "")
    step = "" if member["step"] is None else str(member["step"])
    return [
        member["name"],
        role,
        member["party"][:8],
        step,
        "" if member["share"] is None else f"{member['share']:.0%}",
        _left_out(member["late"]),
        "\n".join(member["addresses"]),
        ", ".join(member["links"]),
    ]


def _left_out(late: Mapping[str, int] | None) -> str:
    if not late or not late["steps"]:
        return ""
    share = late["steps"] / late["of"]
    return f"{late['steps']} of {late['of']} steps ({share:.0%}), last {late['last']}"


def _round_trip(milliseconds: float | None) -> str:
    return "not measured" if milliseconds is None else f"{milliseconds:.1f} ms"


def _rate(bytes_per_s: float | None) -> str:
    return "not measured" if not bytes_per_s else f"{bytes_per_s / 1e6:.1f} MB/s"
