"""The agent's end of the socket to its worker: one worker at a time, and none is turned away for one that has ended."""

from __future__ import annotations

import asyncio
import socket
import struct

import msgspec

from chaos.agent.worker_link import WorkerLink
from chaos.core.worker_messages import Applied, FromWorker


def worker(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect("\0" + address[1:])
    return sock


def say(sock: socket.socket, step: int) -> None:
    body = msgspec.msgpack.encode(Applied(step))
    sock.sendall(struct.pack("<I", len(body)) + body)


async def heard(count: int, happened: list[str]) -> list[str]:
    for _ in range(200):
        if len(happened) >= count:
            break
        await asyncio.sleep(0.01)
    return happened


async def begin(happened: list[str]) -> tuple[WorkerLink, socket.socket]:
    """A link, and its first worker, which has said that it applied step 1."""

    def message(said: FromWorker, _fds: list[int]) -> None:
        assert isinstance(said, Applied)
        happened.append(f"step {said.step}")

    link = WorkerLink(message, happened.append)
    link.start()
    first = worker(link.address)
    say(first, 1)
    await heard(1, happened)
    return link, first


def test_a_successor_is_taken_although_the_end_of_the_former_is_still_unread() -> None:
    async def run() -> list[str]:
        happened: list[str] = []
        made, first = await begin(happened)
        second = worker(made.address)  # while the agent is stopped, say: it finds all this at once, the newcomer first
        say(second, 3)
        say(first, 2)
        first.close()
        await heard(4, happened)
        made.close()
        second.close()
        return happened

    assert asyncio.run(run()) == ["step 1", "step 2", "its process ended", "step 3"]


def test_a_second_worker_beside_a_living_one_is_turned_away() -> None:
    async def run() -> list[str]:
        happened: list[str] = []
        made, first = await begin(happened)
        second = worker(made.address)
        second.setblocking(False)
        assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(second, 1), 5) == b""
        say(first, 2)
        await heard(2, happened)
        made.close()
        first.close()
        second.close()
        return happened

    assert asyncio.run(run()) == ["step 1", "step 2"]
