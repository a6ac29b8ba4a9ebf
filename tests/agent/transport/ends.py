"""Real transports in one process for tests, a cable between them that can be cut, and a stranger without manners."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from chaos.agent.party import Party
from chaos.agent.transport import (
    BulkHeader,
    PlainSecurity,
    Security,
    TlsSecurity,
    Transport,
    TransportConfig,
    Verdict,
)
from chaos.agent.transport.hello import Greeting, Hello, decode_greeting, encode_greeting, greeting_length
from chaos.core.types import PeerInfo

T = TypeVar("T")
LIMIT_S = 20.0
"""For everything that a test waits for; a machine that is busy with other things needs some of it."""
QUICK = TransportConfig(backoff_first_s=0.02, backoff_max_s=0.1, handshake_timeout_s=2.0)
"""Pauses that suit loopback."""


def run(work: Coroutine[Any, Any, T]) -> T:
    """A test's coroutine, with a limit."""

    async def limited() -> T:
        async with asyncio.timeout(2 * LIMIT_S):
            return await work

    return asyncio.run(limited())


async def eventually(holds: Callable[[], Any], what: str = "") -> None:
    """Waits until the condition holds."""
    deadline = asyncio.get_running_loop().time() + LIMIT_S
    while not holds():
        assert asyncio.get_running_loop().time() < deadline, f"did not come about: {what or holds}"
        await asyncio.sleep(0.002)


def plain_info(name: str, incarnation: int = 1) -> PeerInfo:
    """A peer without certificate; names sort as ids do: 'a' is lower than 'b'."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    return PeerInfo(name.encode().hex()[:2] + digest[:14], incarnation, name, "0" * 64, bytes(32), ())


class End:
    """A transport and what it has called back."""

    def __init__(self, info: PeerInfo, security: Security, run_id: str, config: TransportConfig) -> None:
        self.info = info
        self.ups: list[PeerInfo] = []
        self.downs: list[tuple[str, str]] = []
        self.refusals: list[tuple[str, str]] = []
        self.control: list[tuple[str, bytes]] = []
        self.bulk: list[tuple[str, BulkHeader, bytes]] = []
        self.aborted: list[BulkHeader] = []
        self.history: list[str] = []
        self.sink: Callable[[str, BulkHeader], memoryview | Verdict] = lambda _peer, h: memoryview(bytearray(h.length))
        self.answer: Callable[[bytes, str], Awaitable[bytes]] = _echo
        self.hear: Callable[[str, bytes], None] = lambda _src, _body: None
        self.transport = Transport(info, run_id, ["127.0.0.1:0"], security, self, config)

    @property
    def id(self) -> str:
        return self.info.id

    @property
    def address(self) -> str:
        return self.info.addresses[0]

    async def start(self) -> None:
        self.set_addresses(tuple(await self.transport.start()))

    def set_addresses(self, addresses: tuple[str, ...]) -> None:
        i = self.info
        self.info = PeerInfo(i.id, i.incarnation, i.name, i.party, i.key, addresses)
        self.transport.set_me(self.info)

    def linked(self, *others: End) -> bool:
        return {other.id for other in others} <= set(self.transport.links())

    def on_link_up(self, info: PeerInfo, run: str) -> None:
        self.ups.append(info)
        self.history.append(f"up {info.name} {run}")

    def on_link_down(self, peer: str, reason: str) -> None:
        self.downs.append((peer, reason))
        self.history.append(f"down {peer}")

    def on_refused(self, address: str, reason: str) -> None:
        self.refusals.append((address, reason))

    def on_control(self, src: str, body: bytes) -> None:
        self.control.append((src, body))
        self.hear(src, body)

    def bulk_sink(self, peer: str, header: BulkHeader) -> memoryview | Verdict:
        return self.sink(peer, header)

    def on_bulk(self, peer: str, header: BulkHeader, payload: memoryview) -> None:
        self.bulk.append((peer, header, bytes(payload)))

    def bulk_aborted(self, _peer: str, header: BulkHeader, _payload: memoryview) -> None:
        self.aborted.append(header)

    async def on_client(self, payload: bytes, party: str) -> bytes:
        return await self.answer(payload, party)


async def _echo(payload: bytes, party: str) -> bytes:
    return party.encode() + b":" + payload


class World:
    """Makes ends, and closes all of them. `parties` is a directory for certificates; None: plain mode."""

    def __init__(self, parties: Path | None = None) -> None:
        self._parties = parties
        self._ends: list[End] = []
        self._cables: list[Cable] = []

    def party(self, name: str) -> Party:
        assert self._parties is not None
        return Party.open_or_init(self._parties / name, name)

    async def end(
        self,
        name: str,
        run_id: str = "run",
        config: TransportConfig = QUICK,
        incarnation: int = 1,
        party: str = "main",
    ) -> End:
        """A transport that listens."""
        if self._parties is None:
            end = End(plain_info(name, incarnation), PlainSecurity(), run_id, config)
        else:
            owner = self.party(party)
            own = owner.peer(name)
            info = PeerInfo(own.peer_id, incarnation, name, own.party, own.public_key, ())
            end = End(info, TlsSecurity(own, owner.roots()), run_id, config)
        self._ends.append(end)
        await end.start()
        return end

    async def pair(self, config: TransportConfig = QUICK) -> tuple[End, End]:
        """Two ends, linked; the first dialed and keeps the link."""
        a, b = await self.end("a", config=config), await self.end("b", config=config)
        a.transport.connect(b.info)
        await eventually(lambda: a.linked(b) and b.linked(a), "the link")
        return a, b

    async def cable(self, to: End) -> Cable:
        """A way to this end that can be cut; the end advertises it instead of its own address."""
        cable = Cable(to.address)
        self._cables.append(cable)
        to.set_addresses((await cable.start(),))
        return cable

    async def close(self) -> None:
        for cable in self._cables:
            await cable.close()
        for end in self._ends:
            await end.transport.close()


@contextlib.asynccontextmanager
async def world(parties: Path | None = None) -> AsyncIterator[World]:
    it = World(parties)
    try:
        yield it
    finally:
        await it.close()


class Cable:
    """A TCP relay. Connections are numbered from 0 in the order in which they were made."""

    def __init__(self, target: str) -> None:
        host, port = target.rsplit(":", 1)
        self._target = (host, int(port))
        self._server: asyncio.Server | None = None
        self._ways: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = []
        self._pumps: set[asyncio.Task[None]] = set()
        self.carried: list[int] = []
        """Bytes by connection, in the direction of the target."""
        self.closed_to_new = False
        self.piece = 65536
        """Bytes that it carries at a time."""

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    @property
    def count(self) -> int:
        return len(self._ways)

    def cut(self, number: int) -> None:
        """Reset one connection on both sides, with whatever was under way on it."""
        for writer in self._ways[number]:
            writer.transport.abort()

    def cut_all(self) -> None:
        for number in range(self.count):
            self.cut(number)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut_all()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.closed_to_new:
            writer.transport.abort()
            return
        there_reader, there_writer = await asyncio.open_connection(*self._target)
        self._ways.append((writer, there_writer))
        self.carried.append(0)
        number = self.count - 1
        for source, sink, counts in ((reader, there_writer, True), (there_reader, writer, False)):
            pump = asyncio.create_task(self._pump(source, sink, number if counts else None))
            self._pumps.add(pump)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, number: int | None) -> None:
        try:
            while data := await source.read(self.piece):
                sink.write(data)
                await sink.drain()
                await asyncio.sleep(0)  # the ends run in this loop too: let them see each piece
                if number is not None:
                    self.carried[number] += len(data)
            sink.write_eof()
        except OSError:
            sink.transport.abort()


class Stranger:
    """Speaks bytes of its own choice to a transport in plain mode."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, end: End, source: str = "127.0.0.1") -> Stranger:
        host, port = end.address.rsplit(":", 1)
        return cls(*await asyncio.open_connection(host, int(port), local_addr=(source, 0)))

    @classmethod
    async def greet(cls, end: End, hello: Hello, source: str = "127.0.0.1") -> tuple[Stranger, Greeting]:
        stranger = await cls.connect(end, source)
        stranger.write(encode_greeting(hello))
        return stranger, await stranger.hear()

    @classmethod
    async def link(cls, end: End, info: PeerInfo, source: str = "127.0.0.1") -> tuple[Stranger, Stranger]:
        """Control connection and lane 0 of a link that is up."""
        control, _ = await cls.greet(end, hello_of(info, "control"), source)
        lane, _ = await cls.greet(end, hello_of(info, "bulk", serial=1), source)
        await eventually(lambda: info.id in end.transport.links(), "the stranger's link")
        return control, lane

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    async def hear(self) -> Greeting:
        async with asyncio.timeout(LIMIT_S):
            preamble = await self._reader.readexactly(10)
            return decode_greeting(await self._reader.readexactly(greeting_length(preamble, 2**20)))

    async def read_all(self) -> bytes:
        """Until the other end closes or resets the connection."""
        data = b""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(LIMIT_S):
                while piece := await self._reader.read(65536):
                    data += piece
        return data

    def close(self) -> None:
        self._writer.transport.abort()


def hello_of(
    info: PeerInfo, kind: Any, number: int = 1, serial: int = 0, run_id: str = "run", accepted: int = 0
) -> Hello:
    return Hello(run_id, kind, number, accepted, 0, serial, info, "")
