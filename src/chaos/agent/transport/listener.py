"""Accepts connections: proves who dials, hears the hello, and gives the connection its place, or a reason why not."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable

from chaos.agent.transport.addresses import format_address, parse_address
from chaos.agent.transport.channel import Channel, resolve
from chaos.agent.transport.hello import MAX_CLIENT_BODY, Answer, Hello, Identity, Request
from chaos.agent.transport.link import State
from chaos.agent.transport.roster import Claim
from chaos.agent.transport.shared import Shared
from chaos.agent.transport.streams import ConnectionLost, tune
from chaos.core.errors import ChaosError, RemoteProtocolError
from chaos.core.types import PeerInfo

_BACKLOG = 128
_ACCEPTS = 16
"""Connections accepted per turn of the event loop."""
_NO_FILES_PAUSE_S = 1.0

OnClient = Callable[[bytes, str], Awaitable[bytes]]


class Listener:
    """Serves all listening sockets of a transport. `on_client(payload, party)` answers clients."""

    def __init__(self, shared: Shared, on_client: OnClient) -> None:
        self._shared = shared
        self._on_client = on_client
        self._sockets: list[socket.socket] = []
        self._pending: dict[asyncio.Task[None], None] = {}
        """Connections whose hello has not been heard, oldest first."""
        self._clients = 0

    async def open(self, addresses: list[str]) -> list[str]:
        """Listens on all addresses (port 0: any free one) and returns them as bound. Raises ChaosError."""
        for address in addresses:
            host, port = parse_address(address)
            try:
                family, sockaddr = (await resolve(host, port, self._shared.resolver, passive=True))[0]
                self._sockets.append(_listen(family, sockaddr))
            except OSError as error:
                self.close()
                raise ChaosError(_cannot_listen(host, port, error)) from error
        loop = asyncio.get_running_loop()
        for sock in self._sockets:
            loop.add_reader(sock.fileno(), self._accept, sock)
        return [format_address(sock.getsockname()) for sock in self._sockets]

    def close(self) -> None:
        loop = asyncio.get_running_loop()
        for sock in self._sockets:
            loop.remove_reader(sock.fileno())
            sock.close()
        self._sockets.clear()

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_ACCEPTS):
            try:
                sock, sockaddr = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    raise
                self._shared.counters["accept_failed"] += 1
                self._pause(listening)
                return
            if len(self._pending) >= self._shared.config.max_pending:
                next(iter(self._pending)).cancel()
                self._shared.counters["pending_evicted"] += 1
            task = self._shared.spawn(self._serve(sock, format_address(sockaddr)))
            self._pending[task] = None
            task.add_done_callback(self._settled)

    def _pause(self, listening: socket.socket) -> None:
        """No file descriptors are left: accept again in a second instead of spinning."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(listening.fileno())
        loop.call_later(_NO_FILES_PAUSE_S, self._unpause, listening)

    def _unpause(self, listening: socket.socket) -> None:
        if listening in self._sockets:
            asyncio.get_running_loop().add_reader(listening.fileno(), self._accept, listening)

    def _settled(self, task: asyncio.Task[None] | None) -> None:
        if task is not None:
            self._pending.pop(task, None)

    async def _serve(self, sock: socket.socket, remote: str) -> None:
        """From accepted socket to link, lane or client. Whatever goes wrong ends this connection only."""
        channel = Channel(sock, remote)
        try:
            async with asyncio.timeout(self._shared.config.handshake_timeout_s):
                tune(sock)
                hello, proven = await self._greet(channel)
            if hello is not None and hello.kind == "client":
                await self._serve_client(channel, proven.party if proven else "")
        except ChaosError as error:
            self._shared.counters["refused"] += 1
            await self._turn_away(channel, str(error))
        except OSError:
            self._shared.counters["handshake_failed"] += 1  # TimeoutError included
            await channel.close_after_reading()
        finally:
            channel.close()

    async def _greet(self, channel: Channel) -> tuple[Hello | None, Identity | None]:
        """Handshake and hello. Peers get their place here. Returns the hello, None if it was turned away."""
        shared, security = self._shared, self._shared.security
        proven = None
        if not security.plain:
            proven = security.identify(await channel.secure(security.server_context(), server_side=True))
        hello = await channel.hear()
        if not isinstance(hello, Hello):
            raise RemoteProtocolError("the first message must be a hello: make both the same version")
        self._settled(asyncio.current_task())  # from here on it counts no more as unknown
        reason = shared.objection(hello, proven)
        if not reason and shared.security is not security:
            reason = "the set of admitted parties changed at this moment: dial again"
        if reason:
            raise RemoteProtocolError(reason)
        if hello.kind == "control" and hello.info is not None:
            await self._place_control(channel, hello, hello.info)
        elif hello.kind == "bulk" and hello.info is not None:
            await self._place_lane(channel, hello, hello.info)
        return hello, proven

    async def _place_control(self, channel: Channel, hello: Hello, info: PeerInfo) -> None:
        shared, roster = self._shared, self._shared.roster
        claim = roster.claim(info, hello.accepted, shared.me.id)
        if claim is Claim.DUPLICATE:
            await channel.say(shared.refusal("another link stands, or is being made", duplicate=True))
            await channel.close_after_reading()
            return
        old = roster.links.get(info.id)
        if old is not None:
            newer = info.incarnation > old.info.incarnation
            old.close(f"the peer was restarted (incarnation {info.incarnation})" if newer else "the peer dialed anew")
        link = shared.new_link(info, hello.run or shared.run_id, hello.link, outgoing=False, address=channel.remote)
        try:
            await channel.say(shared.hello("control", hello.link, expects=info.id))
        except ConnectionLost as error:
            link.close(str(error))
            raise
        if link.state is not State.CLOSED:
            link.attach_control(channel.release())

    async def _place_lane(self, channel: Channel, hello: Hello, info: PeerInfo) -> None:
        shared = self._shared
        link = shared.roster.links.get(info.id)
        if link is None or link.outgoing or link.number != hello.link or link.info.incarnation != info.incarnation:
            raise RemoteProtocolError("there is no such link any more: it is to be made anew")
        await channel.say(shared.hello("bulk", hello.link, expects=info.id))
        if link.state is not State.CLOSED:
            link.attach_lane(channel.release(), hello.lane, hello.serial)

    async def _serve_client(self, channel: Channel, party: str) -> None:
        """Answers one client until it goes, says nothing for long, or asks out of order."""
        shared = self._shared
        if self._clients >= shared.config.max_clients:
            raise RemoteProtocolError(f"{self._clients} clients are being served: try again in a moment")
        self._clients += 1
        try:
            await channel.say(Hello(shared.run_id, "client", 0, 0, 0, 0, shared.me, ""))
            while True:
                async with asyncio.timeout(shared.config.client_idle_s):
                    message = await channel.hear(MAX_CLIENT_BODY + 64)
                if not isinstance(message, Request):
                    raise RemoteProtocolError("a client sends requests only: make both the same version")
                answer = await self._on_client(message.body, party)
                async with asyncio.timeout(shared.config.client_idle_s):
                    await channel.say(Answer(answer))
        except ConnectionLost:
            return
        finally:
            self._clients -= 1

    async def _turn_away(self, channel: Channel, reason: str) -> None:
        """Tell the remote why, if it still listens."""
        try:
            async with asyncio.timeout(self._shared.config.handshake_timeout_s):
                await channel.say(self._shared.refusal(reason))
        except OSError:
            return  # it has gone; TimeoutError included
        await channel.close_after_reading()


def _listen(family: int, sockaddr: tuple[object, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(sockaddr)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def _cannot_listen(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use: choose another one with --listen HOST:PORT (0: any free one)"
    if error.errno == errno.EACCES:
        return f"port {port} needs privileges: choose one above 1023 with --listen HOST:PORT"
    return f"{host} is not an address of this machine: name one with --listen HOST:PORT (0.0.0.0: all of them)"
