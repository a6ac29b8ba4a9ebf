"""Both ends of `chaos doctor`: a client that visits members without becoming one, and what agents answer it."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib import metadata
from platform import python_version
from typing import Any

from chaos.agent.requests import (
    PROBE_BYTES,
    AnyRequest,
    DialBackRequest,
    ProbeRequest,
    StatusRequest,
    decode_answer,
    encode_request,
)
from chaos.agent.transport import Security, TransportConfig
from chaos.agent.transport.addresses import format_address, parse_address
from chaos.agent.transport.channel import Channel, resolve
from chaos.agent.transport.contact import ask, explained, open_channel
from chaos.agent.transport.hello import MAX_CLIENT_BODY, Answer, Goodbye, Hello, Request
from chaos.agent.transport.streams import tune
from chaos.core.errors import ChaosError, Refused

TRIPS, ROUNDS = 5, 3
"""Small questions for the round trip, large ones for the rate: the best of each counts."""
TIMEOUT_S = 10.0
DIAL_BACK_S = 40.0
"""Addresses are dialed at once; each may take the time to connect, to shake hands and to answer."""
NO_PEER = "this is chaos doctor, which is no peer"


def versions() -> dict[str, str]:
    """What is installed, without importing it."""
    found = {"chaos": "none", "python": python_version(), "torch": "none"}
    for name, package in (("chaos", "chaos-train"), ("torch", "torch")):
        try:
            found[name] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue  # 'none' says so
    return found


# --- what an agent answers -------------------------------------------------------------------------------


def answer_probe(request: ProbeRequest) -> dict[str, Any]:
    return {"wall": time.time(), "versions": versions(), "padding": "x" * request.want}


async def answer_dial_back(request: DialBackRequest, security: Security) -> dict[str, Any]:
    """Dial the asker's addresses, as for a joiner's, and say what came of each."""
    reasons = await asyncio.gather(*(knock(address, security) for address in request.addresses))
    return {"told": dict(zip(request.addresses, reasons, strict=True))}


async def knock(address: str, security: Security) -> str:
    """Why nobody with a certificate that counts here answers at this address; '' if somebody does."""
    try:
        channel, _ = await open_channel(address, security, TransportConfig())
        try:
            with explained(address, security, TIMEOUT_S):
                async with asyncio.timeout(TIMEOUT_S):
                    await ask(channel, Hello("", "client", 0, 0, 0, 0, None, ""))
        finally:
            channel.close()
    except ChaosError as error:
        return str(error).removeprefix(f"{address} ").removeprefix(f"{address}: ")
    return ""


# --- the client ------------------------------------------------------------------------------------------


class Conversation:
    """One client connection to an agent, for several questions."""

    def __init__(self, channel: Channel, address: str, security: Security) -> None:
        self._channel = channel
        self._address = address
        self._security = security

    @property
    def local(self) -> str:
        """The address on this host that the connection uses."""
        return format_address(self._channel.local).rpartition(":")[0].strip("[]")

    async def ask(self, question: AnyRequest, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
        """Raises ChaosError."""
        with explained(self._address, self._security, timeout_s):
            async with asyncio.timeout(timeout_s):
                reply = await ask(self._channel, Request(encode_request(question)), MAX_CLIENT_BODY + 64)
        if isinstance(reply, Goodbye):
            raise Refused(f"{self._address} refuses: {reply.reason}")
        if not isinstance(reply, Answer):
            raise Refused(f"{self._address} answers out of order: make both the same version")
        answer = decode_answer(reply.body)
        if "error" in answer:
            raise ChaosError(f"{self._address}: {answer['error']}")
        return answer


@asynccontextmanager
async def conversation(address: str, security: Security) -> AsyncIterator[Conversation]:
    """Raises ChaosError: DialFailed or Refused."""
    channel, _ = await open_channel(address, security, TransportConfig())
    try:
        with explained(address, security, TIMEOUT_S):
            async with asyncio.timeout(TIMEOUT_S):
                hello = await ask(channel, Hello("", "client", 0, 0, 0, 0, None, ""))
        if isinstance(hello, Goodbye):
            raise Refused(f"{address} refuses: {hello.reason}")
        yield Conversation(channel, address, security)
    finally:
        channel.close()


@dataclass
class Visit:
    """What was found out at one member."""

    name: str
    tried: list[tuple[str, str]] = field(default_factory=list)
    """Its addresses, each with why it did not answer; '' for the one that did."""
    local: str = ""
    offset_s: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    rtt_s: float = 0.0
    up: float = 0.0
    down: float = 0.0
    told: dict[str, str] = field(default_factory=dict)
    """What it says of dialing this host's addresses."""


async def visit(name: str, addresses: Sequence[str], own: Sequence[str], security: Security) -> Visit:
    """Measure the line to a member, and have it dial `own` addresses."""
    found = Visit(name)
    for address in addresses:
        try:
            async with conversation(address, security) as talk:
                await _measure(found, talk)
                found.told = dict((await talk.ask(DialBackRequest(tuple(own[:16])), DIAL_BACK_S))["told"])
        except ChaosError as error:
            found.tried.append((address, str(error).removeprefix(f"{address} ").removeprefix(f"{address}: ")))
            continue
        found.tried.append((address, ""))
        break
    return found


async def _measure(found: Visit, talk: Conversation) -> None:
    found.local = talk.local
    trips = []
    for _ in range(TRIPS):
        answer, took = await _timed(talk, ProbeRequest(b"", 0))
        trips.append((took, float(answer["wall"]) - (time.time() - took / 2)))
    found.rtt_s, found.offset_s = min(trips)
    found.versions = {str(name): str(version) for name, version in answer["versions"].items()}
    for _ in range(ROUNDS):
        _, up = await _timed(talk, ProbeRequest(b"x" * PROBE_BYTES, 0))
        _, down = await _timed(talk, ProbeRequest(b"", PROBE_BYTES))
        found.up = max(found.up, PROBE_BYTES / max(up - found.rtt_s / 2, 1e-4))
        found.down = max(found.down, PROBE_BYTES / max(down - found.rtt_s / 2, 1e-4))


async def _timed(talk: Conversation, request: ProbeRequest) -> tuple[dict[str, Any], float]:
    began = time.monotonic()
    answer = await talk.ask(request)
    return answer, time.monotonic() - began


async def members_of(address: str, security: Security) -> list[tuple[str, list[str]]]:
    """Names and addresses of all peers of the run; of the one asked, the address given comes first. ChaosError."""
    async with conversation(address, security) as talk:
        status = await talk.ask(StatusRequest())
    found = [(str(m["name"]), [str(a) for a in m["addresses"]]) for m in status["members"]]
    mine = next((addresses for name, addresses in found if name == status["peer"]), [])
    others = [(name, addresses) for name, addresses in found if name != status["peer"]]
    return [(str(status["peer"]), list(dict.fromkeys([address, *mine]))), *others]


# --- what members dial -----------------------------------------------------------------------------------


@asynccontextmanager
async def answering(listen: Sequence[str], security: Security) -> AsyncIterator[list[str]]:
    """Listen as a peer would, and turn away whoever comes, after both have proven who they are.

    Yields the bound addresses. Raises ChaosError: an address can't be listened at.
    """
    sockets: list[socket.socket] = []
    tasks: list[asyncio.Task[None]] = []
    try:
        for address in listen:
            sockets.append(await _listen(address))
        tasks += [asyncio.create_task(_turn_away_all(sock, security)) for sock in sockets]
        yield [format_address(sock.getsockname()) for sock in sockets]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for sock in sockets:
            sock.close()


async def _listen(address: str) -> socket.socket:
    host, port = parse_address(address)
    try:
        family, sockaddr = (await resolve(host, port, None, passive=True))[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setblocking(False)
        sock.bind(sockaddr)
        sock.listen(16)
    except OSError as error:
        raise ChaosError(f"cannot listen at {address} ({error.strerror}); give another --listen") from error
    return sock


async def _turn_away_all(listening: socket.socket, security: Security) -> None:
    """One after the other: a member dials once per address."""
    while True:
        sock, sockaddr = await asyncio.get_running_loop().sock_accept(listening)
        channel = Channel(sock, format_address(sockaddr))
        try:
            async with asyncio.timeout(TransportConfig().handshake_timeout_s):
                tune(sock)
                if not security.plain:
                    security.identify(await channel.secure(security.server_context(), server_side=True))
                await channel.hear()
                await channel.say(Goodbye(NO_PEER))
            await channel.close_after_reading()
        except (ChaosError, OSError):
            continue  # whoever it was is told by its own side; the next one may be right
        finally:
            channel.close()
