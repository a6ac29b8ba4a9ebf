"""Addresses as people write them: HOST:PORT, with brackets around an IPv6 host."""

from __future__ import annotations

from typing import Any

from chaos.core.errors import ChaosError


def parse_address(text: str) -> tuple[str, int]:
    """'HOST:PORT' as (host, port). Raises ChaosError for anything else."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not host or not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ChaosError(f"{text!r} is not an address: write HOST:PORT, such as 192.0.2.7:7070 or [2001:db8::7]:7070")
    return host, int(port)


def format_address(sockaddr: tuple[Any, ...]) -> str:
    """The text form of what `getsockname` and `getpeername` return for IPv4 and IPv6."""
    host, port = str(sockaddr[0]), int(sockaddr[1])
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
