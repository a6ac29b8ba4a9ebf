"""How fast the transport moves bulk between two processes on loopback, and what that costs in processor time.

Every round measures the transport and raw blocking sockets one after the other, plain and with TLS, in the same two
processes, so that a busy machine slows them alike. Reported are medians over the rounds of MB/s (10^6 bytes),
and of processor seconds per GB (10^9 bytes) of both ends together.

    python -m benchmarks.transport [--megabytes 400] [--rounds 5] [--frame-kib 1024] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import resource
import socket
import ssl
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from chaos.agent.identity import Identity
from chaos.agent.party import Party
from chaos.agent.transport import BulkHeader, PlainSecurity, Security, TlsSecurity, Transport, TransportConfig
from chaos.core.types import PeerInfo

HOST = "127.0.0.1"
CASES = ("raw plain", "transport plain", "raw TLS", "transport TLS")


@dataclass
class Measured:
    """One transfer, seen from one end or (summed) from both."""

    nbytes: int
    seconds: float
    processor_s: float

    @property
    def speed(self) -> float:
        """MB/s."""
        return self.nbytes / self.seconds / 1e6

    @property
    def cost(self) -> float:
        """Processor seconds per GB."""
        return self.processor_s / (self.nbytes / 1e9)


def processor_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def touched(nbytes: int) -> memoryview:
    """Memory whose pages exist."""
    return memoryview(bytearray(b"\x01") * nbytes)


class End:
    """Handlers of one end: counts what arrives into one buffer per size."""

    def __init__(self) -> None:
        self.up = asyncio.Event()
        self.finished = False
        self.whole = asyncio.Event()
        self.awaited = 0
        self.buffer = touched(16 * 2**20)

    def on_link_up(self, _info: PeerInfo, _run: str) -> None:
        self.up.set()

    def on_link_down(self, peer: str, reason: str) -> None:
        if not self.finished:
            raise RuntimeError(f"link to {peer} went down: {reason}")

    def on_refused(self, address: str, reason: str) -> None:
        raise RuntimeError(f"{address}: {reason}")

    def on_control(self, src: str, body: bytes) -> None:
        raise RuntimeError(f"unexpected message from {src}: {body!r}")

    def bulk_sink(self, _peer: str, header: BulkHeader) -> memoryview:
        return self.buffer[: header.length]

    def on_bulk(self, _peer: str, header: BulkHeader, _payload: memoryview) -> None:
        self.awaited -= header.length
        if self.awaited <= 0:
            self.whole.set()

    def bulk_aborted(self, peer: str, _header: BulkHeader, _payload: memoryview) -> None:
        raise RuntimeError(f"a frame from {peer} broke off")

    async def on_client(self, _payload: bytes, _party: str) -> bytes:
        return b""


def info_of(identity: Identity) -> PeerInfo:
    return PeerInfo(identity.peer_id, 1, identity.name, identity.party, identity.public_key, ())


async def send_transport(pipe: Connection, identity: Identity, security: Security, nbytes: int, frame: int) -> Measured:
    end = End()
    transport = Transport(info_of(identity), "bench", [], security, end, TransportConfig())
    await transport.start()
    peer = (await transport.dial(pipe.recv())).id
    payload, sent, count = touched(frame), asyncio.Event(), nbytes // frame
    left = count

    def on_sent() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            sent.set()

    used, start = processor_s(), time.perf_counter()
    for index in range(count):
        transport.send_bulk(peer, BulkHeader(kind=1, index=index), payload, on_sent=on_sent)
    await sent.wait()
    measured = Measured(count * frame, time.perf_counter() - start, processor_s() - used)
    end.finished = True
    pipe.send("done")
    await transport.close()
    return measured


async def receive_transport(pipe: Connection, identity: Identity, security: Security, nbytes: int) -> float:
    """Processor seconds."""
    end = End()
    end.awaited = nbytes
    transport = Transport(info_of(identity), "bench", [f"{HOST}:0"], security, end, TransportConfig())
    pipe.send((await transport.start())[0])
    await end.up.wait()
    used = processor_s()
    await end.whole.wait()
    spent = processor_s() - used
    end.finished = True
    await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
    await transport.close()
    return spent


def send_raw(pipe: Connection, context: ssl.SSLContext | None, nbytes: int) -> Measured:
    sock: socket.socket = socket.create_connection(pipe.recv())
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if context is not None:
        sock = context.wrap_socket(sock)
    payload = touched(2**20)
    with sock:
        used, start, left = processor_s(), time.perf_counter(), nbytes
        while left:
            left -= sock.send(payload[:left])
        sock.recv(1)
        return Measured(nbytes, time.perf_counter() - start, processor_s() - used)


def receive_raw(pipe: Connection, context: ssl.SSLContext | None, nbytes: int) -> float:
    """Processor seconds."""
    with socket.create_server((HOST, 0)) as server:
        pipe.send(server.getsockname())
        sock, _ = server.accept()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if context is not None:
        sock = context.wrap_socket(sock, server_side=True)
    buffer = touched(2**20)
    with sock:
        used, left = processor_s(), nbytes
        while left:
            left -= sock.recv_into(buffer[:left])
        sock.send(b"x")
        return processor_s() - used


def receiver(pipe: Connection, directory: str, cases: list[str], rounds: int, nbytes: int) -> None:
    """The second process: for each transfer, receives it and reports its processor time."""
    party = Party.open(Path(directory))
    identity = party.peer("receiver")
    secure = TlsSecurity(identity, party.roots())
    for case in cases * rounds:
        how, kind = case.split()
        if how == "raw":
            spent = receive_raw(pipe, secure.server_context() if kind == "TLS" else None, nbytes)
        else:
            security = secure if kind == "TLS" else PlainSecurity()
            spent = asyncio.run(receive_transport(pipe, identity, security, nbytes))
        pipe.send(spent)


def measure(cases: list[str], rounds: int, nbytes: int, frame: int) -> dict[str, list[Measured]]:
    results: dict[str, list[Measured]] = {case: [] for case in cases}
    with tempfile.TemporaryDirectory() as directory:
        party = Party.init(Path(directory), "bench")
        identity = party.peer("sender")
        secure = TlsSecurity(identity, party.roots())
        mine, theirs = multiprocessing.Pipe()
        arguments = (theirs, directory, cases, rounds, nbytes)
        other = multiprocessing.get_context("spawn").Process(target=receiver, args=arguments, daemon=True)
        other.start()
        for case in cases * rounds:
            how, kind = case.split()
            if how == "raw":
                measured = send_raw(mine, secure.client_context() if kind == "TLS" else None, nbytes)
            else:
                security = secure if kind == "TLS" else PlainSecurity()
                measured = asyncio.run(send_transport(mine, identity, security, nbytes, frame))
            measured.processor_s += mine.recv()
            results[case].append(measured)
        other.join(10)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=400, help="per transfer, in 2^20 bytes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frame-kib", type=int, default=1024)
    parser.add_argument("--case", action="append", choices=CASES, help="only this one (may be repeated)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    nbytes = options.megabytes * 2**20
    frame = options.frame_kib * 2**10
    results = measure(options.case or list(CASES), options.rounds, nbytes - nbytes % frame, frame)
    if options.json:
        print(json.dumps({case: [asdict(one) for one in measured] for case, measured in results.items()}))
        return
    for case, measured in results.items():
        speeds, costs = [one.speed for one in measured], [one.cost for one in measured]
        print(
            f"{case:16} {statistics.median(speeds):6.0f} MB/s ({min(speeds):.0f}-{max(speeds):.0f})   "
            f"{statistics.median(costs):.2f} processor s/GB ({min(costs):.2f}-{max(costs):.2f})"
        )


if __name__ == "__main__":
    main()
