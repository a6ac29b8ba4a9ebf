"""Opening a connection as far as TLS, with errors that people can act on; and a client's one request."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Iterator
from concurrent.futures import Executor

from chaos.agent.transport.addresses import parse_address
from chaos.agent.transport.channel import Channel, connect
from chaos.agent.transport.config import TransportConfig
from chaos.agent.transport.hello import MAX_CLIENT_BODY, Answer, Goodbye, Greeting, Hello, Identity, Request
from chaos.agent.transport.security import Security
from chaos.agent.transport.streams import ConnectionLost, describe, tune
from chaos.core.errors import ChaosError, Refused, RemoteProtocolError


class DialFailed(ChaosError):
    """No connection could be made, though nobody refused it."""


@contextlib.contextmanager
def explained(address: str, security: Security, timeout_s: float) -> Iterator[None]:
    """What goes wrong on a connection being made becomes DialFailed, or Refused; the message names the address."""
    try:
        yield
    except TimeoutError as error:
        raise DialFailed(
            f"{address} accepts connections but does not answer within {timeout_s:g} s: check what listens there"
        ) from error
    except ConnectionLost as error:
        if isinstance(error.__cause__, ssl.SSLError):
            raise Refused(f"{address}: {security.explain(error.__cause__)}") from error
        raise DialFailed(f"{address}: {error}: see the log of the agent there") from error
    except RemoteProtocolError as error:
        raise Refused(f"{address}: {error}") from error


async def open_channel(
    address: str, security: Security, config: TransportConfig, resolver: Executor | None = None
) -> tuple[Channel, Identity | None]:
    """Connects and, unless in plain mode, shakes hands and identifies the other end.

    Raises:
        DialFailed: nobody there, or no answer within `config.handshake_timeout_s`, which holds for each of both.
        Refused: TLS failed, in one direction or the other.
    """
    timeout_s = config.handshake_timeout_s
    host, port = parse_address(address)
    try:
        async with asyncio.timeout(timeout_s):
            sock = await connect(host, port, resolver)
    except TimeoutError as error:
        raise DialFailed(
            f"{address} does not answer within {timeout_s:g} s: check the address, and firewalls on the way"
        ) from error
    except ConnectionRefusedError as error:
        raise DialFailed(f"nobody listens at {address}: start the agent there, or correct the address") from error
    except OSError as error:
        raise DialFailed(f"{address} can't be reached ({describe(error)}): check the address") from error
    channel = Channel(sock, address)
    try:
        with explained(address, security, timeout_s):
            tune(sock)
            if security.plain:
                return channel, None
            async with asyncio.timeout(timeout_s):
                return channel, security.identify(await channel.secure(security.client_context(), False))
    except (ChaosError, asyncio.CancelledError):
        channel.close()
        raise


async def ask(channel: Channel, message: Greeting, limit: int | None = None) -> Greeting:
    """One greeting for another, without a time limit. Raises as `Channel.say` and `Channel.hear`."""
    await channel.say(message)
    return await (channel.hear() if limit is None else channel.hear(limit))


async def request(
    address: str,
    security: Security,
    payload: bytes,
    run_id: str = "",
    timeout_s: float = 10.0,
) -> bytes:
    """A client's question to the agent at `address` (HOST:PORT), and its answer; each 4 MiB at most.

    `run_id` is the run that the agent must take part in; empty: any. Raises DialFailed or Refused, both ChaosError.
    """
    channel, _ = await open_channel(address, security, TransportConfig())
    try:
        with explained(address, security, timeout_s):
            async with asyncio.timeout(timeout_s):
                answer = await ask(channel, Hello(run_id, "client", 0, 0, 0, 0, None, ""))
                if isinstance(answer, Hello):
                    answer = await ask(channel, Request(payload), MAX_CLIENT_BODY + 64)
    finally:
        channel.close()
    if isinstance(answer, Goodbye):
        raise Refused(f"{address} refuses: {answer.reason}")
    if not isinstance(answer, Answer):
        raise Refused(f"{address} answers out of order: make both the same version")
    return answer.body
