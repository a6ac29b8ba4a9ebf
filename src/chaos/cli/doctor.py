"""`chaos doctor`: what would keep this host from taking part in a run, before it takes part."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import psutil
from rich.console import Console
from rich.table import Table
from rich.text import Text

from chaos.agent import findings as judge
from chaos.agent import reach
from chaos.agent.advertise import advertised
from chaos.agent.checkpoint import newest_bytes
from chaos.agent.client import CLIENT_NAME, open_party, security_of
from chaos.agent.findings import Finding, Level
from chaos.agent.identity import utc_now
from chaos.agent.party import Party
from chaos.agent.shared_memory import SharedMemory
from chaos.agent.transport import Security
from chaos.core.errors import ChaosError

STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.PROBLEM: "bold red"}
SAMPLE_BYTES = 2**20


class Question(NamedTuple):
    """What the command line asks for; as `chaos run` has it."""

    join: tuple[str, ...]
    listen: tuple[str, ...]
    advertise: tuple[str, ...]
    party: Path | None
    checkpoint: Path | None
    plain: bool


# --- this host -------------------------------------------------------------------------------------------


def certificates(party: Party) -> list[Finding]:
    """Root and leaf. The leaf is that of clients: peers get theirs in the same way."""
    now, root = utc_now(), party.root
    remedy = "make a new party (chaos party init) and have the others admit it"
    found = [judge.certificate("party", root.cert.not_valid_before_utc, root.expires, now, remedy)]
    try:
        leaf = party.peer(CLIENT_NAME).cert
    except ChaosError as error:
        return [
            *found,
            Finding("certificate", Level.PROBLEM, str(error), "copy ca.key here, or have a leaf made there"),
        ]
    starts, ends = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    return [*found, judge.certificate("certificate", starts, ends, now, "run where ca.key is, which renews it")]


def shared_memory() -> Finding:
    failure = ""
    try:
        SharedMemory.create("chaos-doctor", SAMPLE_BYTES, prefault=True).close()
    except ChaosError as error:
        failure = str(error)
    return judge.memory(psutil.virtual_memory().available, failure)


def open_files() -> Finding:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return judge.files(2**20 if limit == resource.RLIM_INFINITY else limit)


def checkpoint_disk(directory: Path | None) -> Finding:
    """The nearest directory above that exists is where space is taken."""
    if directory is None:
        return Finding("checkpoints", Level.OK, "none asked for; --checkpoint DIR looks at the space there")
    place = directory.absolute()
    while not place.exists():
        place = place.parent
    failure = "" if place.is_dir() and os.access(place, os.W_OK | os.X_OK) else "can't be written to"
    try:
        return judge.disk(str(directory), shutil.disk_usage(place).free, newest_bytes(directory), failure)
    except ChaosError as error:
        return judge.disk(str(directory), 0, None, str(error))


def interfaces() -> dict[str, str]:
    """Address to interface."""
    return {entry.address: name for name, entries in psutil.net_if_addrs().items() for entry in entries}


def network(told: list[str], used: str | None) -> list[Finding]:
    """What others are told, and the interface that leads to the run (or the first that is not loopback)."""
    named = interfaces()
    first = used or next((judge.host_of(a) for a in told), "127.0.0.1")
    interface = named.get(first, "")
    found = [judge.addresses(told, named, used)]
    stats = psutil.net_if_stats()
    if interface in stats:
        found.append(judge.interface_mtu(interface, stats[interface].mtu))
    return found


# --- the run ---------------------------------------------------------------------------------------------


def of_visit(visit: reach.Visit) -> list[Finding]:
    found = [judge.reached(visit.name, visit.tried)]
    if visit.rtt_s:
        found += [
            judge.dialed_back(visit.name, visit.told),
            judge.line(visit.name, visit.rtt_s, visit.up, visit.down),
            judge.clock(visit.offset_s, visit.name),
            judge.versions(reach.versions(), visit.versions, visit.name),
        ]
    return found


async def look_around(question: Question, security: Security) -> list[Finding]:
    """Everything about the network, and the members if one is named."""
    try:
        async with reach.answering(question.listen, security) as bound:
            told = list(advertised(bound, question.advertise))
            if not question.join:
                return [*network(told, None), judge.versions(reach.versions(), None)]
            return await _visit_all(question, told, security)
    except ChaosError as error:
        remedy = "choose another port, or an address of this host"
        return [Finding("listening", Level.PROBLEM, str(error), remedy)]


async def _visit_all(question: Question, told: list[str], security: Security) -> list[Finding]:
    tried: list[tuple[str, str]] = []
    for address in question.join:
        try:
            members = await reach.members_of(address, security)
            break
        except ChaosError as error:
            tried.append((address, str(error).removeprefix(f"{address} ").removeprefix(f"{address}: ")))
    else:
        return [*network(told, None), judge.versions(reach.versions(), None), judge.reached("the run", tried)]
    visits = [await reach.visit(name, addresses, told, security) for name, addresses in members]
    used = next((visit.local for visit in visits if visit.local), None)
    return [*network(told, used), *(finding for visit in visits for finding in of_visit(visit))]


# --- the verb --------------------------------------------------------------------------------------------


def examine(question: Question) -> list[Finding]:
    """Raises ChaosError only where there is no party to speak for."""
    party = open_party(question.party)
    found = [] if question.plain else certificates(party)
    found += [shared_memory(), open_files(), checkpoint_disk(question.checkpoint)]
    if any(f.level == Level.PROBLEM and f.what == "certificate" for f in found):
        return found  # nobody can be asked without one
    security = security_of(party, party.peer(CLIENT_NAME), question.plain)
    return found + asyncio.run(look_around(question, security))


def table(found: list[Finding]) -> Table:
    grid = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(3):
        grid.add_column(overflow="fold")
    for finding in found:
        text = Text(finding.text)
        if finding.remedy:
            text.append(f"\n-> {finding.remedy}", style="dim")
        grid.add_row(Text(finding.level, style=STYLES[finding.level]), Text(finding.what), text)
    return grid


def show(question: Question, as_json: bool) -> int:
    """Print what was found. Returns the exit code: 1 if there is a problem, else 0."""
    found = examine(question)
    bad = sum(f.level == Level.PROBLEM for f in found)
    doubtful = sum(f.level == Level.WARNING for f in found)
    if as_json:
        print(json.dumps({"findings": [asdict(f) for f in found], "problems": bad, "warnings": doubtful}))
    else:
        Console().print(table(found))
        print(f"{bad} problems, {doubtful} warnings" if bad or doubtful else "all is well")
    return 1 if bad else 0
