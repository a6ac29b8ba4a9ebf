"""What the parts of one transport have in common: who it is, its settings, its links, its tasks."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from chaos.agent.transport.config import TransportConfig
from chaos.agent.transport.hello import Goodbye, Hello, Identity, objection
from chaos.agent.transport.link import Link, LinkOwner
from chaos.agent.transport.roster import Roster
from chaos.agent.transport.security import Security
from chaos.agent.transport.uplink import Uplink
from chaos.core.types import PeerInfo


class Shared:
    """State of a transport that both its dialer and its listener use. Lives in one event loop."""

    def __init__(
        self, me: PeerInfo, run_id: str, security: Security, config: TransportConfig, owner: LinkOwner
    ) -> None:
        self.me = me
        self.run_id = run_id
        self.security = security
        self.config = config
        self.owner = owner
        self.roster = Roster()
        self.uplink = Uplink(time.monotonic)
        self.counters: Counter[str] = Counter()
        self.resolver = ThreadPoolExecutor(max_workers=2, thread_name_prefix="chaos-resolve")
        self._closed = False
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run in the background until it ends or the transport closes; what it raises goes to the loop's handler."""
        task = asyncio.get_running_loop().create_task(work)
        self.own(task)
        task.add_done_callback(_report)
        return task

    def own(self, task: asyncio.Task[Any]) -> None:
        """End the task when the transport closes, or at once if it has. Whoever awaits it gets what it raises."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self._closed:
            task.cancel()

    async def stop_tasks(self) -> None:
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.resolver.shutdown(wait=False, cancel_futures=True)

    def hello(
        self, kind: str, number: int, accepted: int = 0, lane: int = 0, serial: int = 0, expects: str = ""
    ) -> Hello:
        """This peer's hello for a connection of a link."""
        assert kind in ("control", "bulk")
        return Hello(self.run_id, kind, number, accepted, lane, serial, self.me, expects)  # type: ignore[arg-type]

    def objection(self, hello: Hello, proven: Identity | None) -> str:
        """Why the hello can't be accepted now; empty if it can."""
        peer = hello.info.id if hello.info else ""
        if self.roster.quarantined(peer, asyncio.get_running_loop().time()):
            return f"peer {peer} broke the protocol a moment ago and has to wait: make both the same version"
        return objection(hello, self.me, self.run_id, proven, self.roster.recall(peer).incarnation)

    def refusal(self, reason: str, duplicate: bool = False) -> Goodbye:
        return Goodbye(reason[:4096], duplicate, self.me.id)

    def new_link(self, info: PeerInfo, run: str, number: int, outgoing: bool, address: str) -> Link:
        """A link in the roster, without connections yet. The peer must have no other."""
        link = Link(info, run, number, outgoing, address, self.owner, self.config, self.uplink)
        self.roster.add(link)
        return link


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        task.get_loop().call_exception_handler(
            {"message": "a task of the transport failed", "exception": error, "task": task}
        )
