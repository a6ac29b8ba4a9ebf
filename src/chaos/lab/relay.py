"""The network of a lab without any rights: relays on loopback, which hold bytes back as links would.

Host n listens at 127.78.0.(n+1) and is reached at 127.77.0.(n+1), where a relay accepts its connections. A connection's
bytes pass the sender's uplink, the link and the receiver's downlink, each at its rate, and arrive after the latency.
What is above TCP can't tell this from a link; TCP itself sees loopback, so there is neither loss nor a queue that
overflows: a sender has to wait instead.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import psutil

from chaos.core.errors import ChaosError
from chaos.lab.carrier import MAX_HOSTS, PORT, Quality, Traffic
from chaos.lab.guard import MARK

CHUNK = 16 * 1024
"""Bytes that are read at once: 0.7 ms at 200 Mbit/s."""
ON_THE_WAY = 1024
"""Chunks of a connection at most that were sent and have not arrived: 160 ms at 800 Mbit/s."""
BUFFER = 128 * 1024
"""Of the relay's sockets: what waits in them has not been sent, though its sender may think so."""
PATIENCE_S = 10.0

T = TypeVar("T")


class Gate:
    """Lets bytes pass at a rate, one chunk after the other."""

    def __init__(self) -> None:
        self.rate = 0.0
        """Bits per second; 0: no limit."""
        self._free_at = 0.0

    def passed(self, nbytes: int, at: float) -> float:
        """When the last of these bytes is through, if the first is there at `at`. Seconds."""
        if not self.rate:
            return at
        self._free_at = max(self._free_at, at) + nbytes * 8 / self.rate
        return self._free_at


class Direction:
    """One direction of a link, down at first, with the accesses that its ends share with their other links."""

    def __init__(self, up: Gate, down: Gate, random: Random) -> None:
        self._gates = (up, Gate(), down)
        self._random = random
        self._quality = Quality()
        self.carries = asyncio.Event()
        self.chunks = 0
        self.nbytes = 0

    def set(self, quality: Quality | None) -> None:
        if quality is None:
            self.carries.clear()
            return
        self._quality = quality
        self._gates[1].rate = quality.rate
        self.carries.set()

    def send(self, nbytes: int, now: float) -> tuple[float, float]:
        """When these bytes arrive, and from when on the sender may send the next."""
        out = now
        for gate in self._gates:
            out = gate.passed(nbytes, out)
        self.chunks += 1
        self.nbytes += nbytes
        quality = self._quality
        arrives = out + (quality.latency_ms + self._random.uniform(0, quality.jitter_ms)) / 1000
        return arrives, out - quality.queue_ms / 1000


class Relay:
    """Carries one connection's bytes in one direction, until its sender ends or either end breaks it."""

    def __init__(self, direction: Direction, late: Callable[[float], None]) -> None:
        self._direction = direction
        self._late = late
        self._on_the_way: asyncio.Queue[tuple[float, bytes | None]] = asyncio.Queue(ON_THE_WAY)
        """When it arrives, and what: bytes, the end (empty), or that the connection is broken (None)."""

    async def run(self, source: asyncio.StreamReader, sender: asyncio.StreamWriter, sink: asyncio.StreamWriter) -> None:
        """`source` and `sender` are the two halves of the connection with the sending end."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._take(source))
            tasks.create_task(self._deliver(sink, sender))

    async def _take(self, source: asyncio.StreamReader) -> None:
        now = asyncio.get_running_loop().time
        data: bytes | None = b"-"
        arrives = 0.0
        while data:
            try:
                data = await source.read(CHUNK)
            except ConnectionError:
                data = None  # its sender was killed, or closed it with bytes unread
            await self._direction.carries.wait()
            at, free = self._direction.send(len(data or b""), now())
            arrives = max(arrives, at)
            await self._on_the_way.put((arrives, data))
            await asyncio.sleep(max(0.0, free - now()))

    async def _deliver(self, sink: asyncio.StreamWriter, sender: asyncio.StreamWriter) -> None:
        now = asyncio.get_running_loop().time
        data: bytes | None = b"-"
        while data:
            due, data = await self._on_the_way.get()
            if due > now():
                await asyncio.sleep(due - now())
                self._late(now() - due)
            await self._direction.carries.wait()
            try:
                if data is None:
                    sink.transport.abort()
                elif sink.is_closing():
                    raise ConnectionResetError
                elif data:
                    sink.write(data)
                    await sink.drain()
                else:
                    sink.write_eof()
            except OSError:  # the receiving end is gone
                sender.transport.abort()


class Relays:
    """A `Carrier` by relays, in a thread of its own. Nothing is left after `close`.

    Args:
        names: of the hosts. A process is on the host that the last part of its CHAOS_RUNTIME_DIR names.

    Raises ChaosError: the addresses are taken.
    """

    def __init__(self, names: Sequence[str], seed: int = 0) -> None:
        if not 1 <= len(names) <= MAX_HOSTS:
            raise ChaosError(f"a lab has 1 to {MAX_HOSTS} hosts, not {len(names)}")
        self._names = list(names)
        self._random = Random(seed)
        self._late_s = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chaos-lab-relays", daemon=True)
        self._thread.start()
        try:
            self._call(self._start())
        except OSError as error:
            self.close()
            raise ChaosError(f"{error}; does another lab with --emulate run?") from error

    def close(self) -> None:
        if not self._loop.is_closed():
            self._call(self._stop())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(PATIENCE_S)
            self._loop.close()

    def enter(self, host: int) -> list[str]:  # noqa: ARG002 - all hosts are here
        return []

    def listen_at(self, host: int) -> str:
        return f"127.78.0.{host + 1}:{PORT}"

    def reached_at(self, host: int) -> str:
        return f"127.77.0.{host + 1}:{PORT}"

    def set_direction(self, sender: int, receiver: int, quality: Quality | None) -> None:
        self._loop.call_soon_threadsafe(self._directions[sender, receiver].set, quality)

    def set_access(self, host: int, up: float, down: float, queue_ms: float = 100.0) -> None:  # noqa: ARG002
        self._access[host][0].rate, self._access[host][1].rate = up, down

    def traffic(self) -> tuple[dict[tuple[int, int], Traffic], float]:
        late, self._late_s = self._late_s, 0.0
        return {ends: Traffic(way.chunks, way.nbytes) for ends, way in self._directions.items() if way.chunks}, late

    # --- in the thread -------------------------------------------------------------------------------------

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    async def _start(self) -> None:
        hosts = range(len(self._names))
        self._access = [(Gate(), Gate()) for _ in hosts]
        self._directions = {
            (a, b): Direction(self._access[a][0], self._access[b][1], self._random)
            for a in hosts for b in hosts if a != b
        }  # fmt: skip
        for host in hosts:
            await self._listen(host)

    async def _listen(self, host: int) -> None:
        def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = self._loop.create_task(self._serve(host, reader, writer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        address, port = self.reached_at(host).split(":")
        self._servers.append(await asyncio.start_server(accepted, address, int(port), limit=CHUNK))

    async def _stop(self) -> None:
        for server in self._servers:
            server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, receiver: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection to this host, until both ends are done with it."""
        far: asyncio.StreamWriter | None = None
        try:
            sender = await asyncio.to_thread(self._host_of, writer.get_extra_info("peername"))
            address, port = self.listen_at(receiver).split(":")
            answers, far = await asyncio.open_connection(address, int(port), limit=CHUNK)
            _narrow(writer)
            _narrow(far)
            if sender == receiver:
                there = back = _at_once()
            else:
                there, back = self._directions[sender, receiver], self._directions[receiver, sender]
            async with asyncio.TaskGroup() as both:
                both.create_task(Relay(there, self._note_late).run(reader, writer, far))
                both.create_task(Relay(back, self._note_late).run(answers, far, writer))
        except (OSError, LookupError):
            writer.transport.abort()  # nobody listens there, or who dialed has ended: as if it were refused
        finally:
            writer.close()
            if far is not None:
                far.close()

    def _note_late(self, seconds: float) -> None:
        self._late_s = max(self._late_s, seconds)

    def _host_of(self, end: tuple[str, int]) -> int:
        """The host on which the process runs that has this end of a connection. Raises LookupError."""
        for connection in psutil.net_connections("tcp4"):
            if connection.laddr == end and connection.pid:
                try:
                    home = psutil.Process(connection.pid).environ().get(MARK, "")
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
                if (name := Path(home).name) in self._names:
                    return self._names.index(name)
        raise LookupError(f"no process of this lab has the connection from {end}")


def _narrow(end: asyncio.StreamWriter) -> None:
    wire: socket.socket = end.get_extra_info("socket")
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
    end.transport.set_write_buffer_limits(CHUNK)


def _at_once() -> Direction:
    direction = Direction(Gate(), Gate(), Random(0))
    direction.set(Quality())
    return direction
