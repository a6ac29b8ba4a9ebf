"""Talking to agents from outside a run: status, leave, force-view, passing on a dead peer's last words."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from chaos.agent.identity import Identity
from chaos.agent.party import Party, default_directory
from chaos.agent.requests import (
    AnyRequest,
    ForceViewRequest,
    LeaveRequest,
    LinesRequest,
    LinkRequest,
    SealRequest,
    StatusRequest,
    decode_answer,
    encode_request,
)
from chaos.agent.transport import PlainSecurity, Security, TlsSecurity, request
from chaos.agent.words import runtime_directory
from chaos.core.errors import ChaosError
from chaos.core.messages import Sealed

CLIENT_NAME = "chaos-client"
"""The peer name whose certificate a client of a party uses; it never joins a run."""


def open_party(directory: Path | None) -> Party:
    """The party in `directory`; the user's own, made at first use, if none is given."""
    if directory is not None:
        return Party.open(directory)
    return Party.open_or_init(default_directory(), socket.gethostname().split(".")[0] or "party")


def security_of(party: Party, identity: Identity, plain: bool = False) -> Security:
    """How a peer of `party` connects, and whom it lets in."""
    return PlainSecurity() if plain else TlsSecurity(identity, party.roots())


def ask(address: str, question: AnyRequest, security: Security, timeout_s: float = 10.0) -> dict[str, Any]:
    """One request and its answer. Raises ChaosError if nobody answers, or the answer is an error."""
    answer = decode_answer(asyncio.run(request(address, security, encode_request(question), timeout_s=timeout_s)))
    if "error" in answer:
        raise ChaosError(f"{address}: {answer['error']}")
    return answer


def _client_security(party: Path | None, plain: bool) -> Security:
    if plain:
        return PlainSecurity()
    opened = open_party(party)
    return security_of(opened, opened.peer(CLIENT_NAME))


def request_status(address: str, party: Path | None = None, plain: bool = False) -> dict[str, Any]:
    """What the agent at `address` knows of its run: see `Node.status`."""
    return ask(address, StatusRequest(), _client_security(party, plain))


def request_lines(
    address: str, after: int = 0, party: Path | None = None, plain: bool = False
) -> tuple[list[dict[str, Any]], int]:
    """Recent trace lines that the agent at `address` has of all peers, in the order in which it got them.

    `after` is the number that the last call returned; 0 asks for all that are kept. Returns lines and the next number.
    """
    security = _client_security(party, plain)
    found: list[dict[str, Any]] = []
    while True:
        answer = ask(address, LinesRequest(after), security)
        found += [json.loads(line) for line in answer["lines"]]
        if answer["next"] == after or not answer["lines"]:
            return found, after
        after = int(answer["next"])


def request_leave(address: str, party: Path | None = None, plain: bool = False) -> str:
    """Ask the peer at `address` to leave its run; returns its name."""
    return str(ask(address, LeaveRequest("chaos leave"), _client_security(party, plain))["leaving"])


def preview_force(address: str, party: Path | None = None, plain: bool = False) -> dict[str, Any]:
    """What a view forced by the peer at `address` would be: see `Force.preview`. ChaosError if it refuses."""
    return ask(address, ForceViewRequest(None), _client_security(party, plain))


def request_force(address: str, view: int, party: Path | None = None, plain: bool = False) -> str:
    """Have the peer at `address` force a view in place of `view`; returns the new lineage."""
    return str(ask(address, ForceViewRequest(view), _client_security(party, plain))["lineage"])


def request_link(
    address: str, peer: str, connect: bool, party: Path | None = None, plain: bool = False, timeout_s: float = 10.0
) -> dict[str, Any]:
    """Have the peer at `address` cut its link to `peer` (a name or id), or make it again; wait for the agreement.

    Returns:
        'peer' and 'other': names of the two ends; 'view': the one that has it so.

    Raises:
        ChaosError: there is no such peer, it is so already, nobody answers, or no agreement came about in time.
    """
    security = _client_security(party, plain)
    asked = ask(address, LinkRequest(peer, connect), security)
    ends = {asked["peer"], asked["other"]}
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        status = ask(address, StatusRequest(), security)
        if (ends in map(set, status["cut"])) != connect:
            return asked | {"view": status["view"]}
        time.sleep(0.05)
    raise ChaosError(f"no agreement on that link within {timeout_s:g} s; look at 'chaos status {address}'")


def deliver_words(sealed: Sealed, addresses: Iterable[str], security: Security) -> bool:
    """Hand a dead peer's last words to the first member that takes them."""
    for address in addresses:
        try:
            ask(address, SealRequest(sealed), security, timeout_s=2.0)
        except ChaosError:
            continue  # it may be gone too; the next one will do
        return True
    return False


# --- agents of this user on this host ------------------------------------------------------------------


def _address_file(runtime: Path) -> Path:
    return runtime / f"agent-{os.getpid()}.json"


def announce(runtime: Path, addresses: Iterable[str], name: str) -> Path:
    """Let `chaos status` on this host find this agent without an address."""
    path = _address_file(runtime)
    path.write_text(json.dumps({"pid": os.getpid(), "name": name, "addresses": list(addresses)}))
    return path


def local_addresses() -> list[str]:
    """First addresses of this user's agents on this host, oldest first; files of dead ones are removed."""
    found: list[tuple[float, str]] = []
    for path in runtime_directory().glob("agent-*.json"):
        try:
            content = json.loads(path.read_text())
            os.kill(int(content["pid"]), 0)
            found.append((path.stat().st_mtime, str(content["addresses"][0])))
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        except (OSError, ValueError, KeyError, IndexError):
            continue  # it is being written, or removed, just now
    return [address for _, address in sorted(found)]
