"""Which addresses others are told: those of this host's interfaces, unless somebody knows better."""

from __future__ import annotations

import socket

import psutil

WILDCARDS = ("0.0.0.0", "::")


def advertised(bound: list[str], given: tuple[str, ...]) -> tuple[str, ...]:
    """Addresses for `PeerInfo`: what was given, else the bound ones with wildcards spelled out.

    A given address without a port, or with port 0, gets the first bound port.
    """
    port = bound[0].rsplit(":", 1)[1]
    if given:
        return tuple(_with_port(address, port) for address in given)
    addresses: list[str] = []
    for address in bound:
        host, bound_port = address.rsplit(":", 1)
        hosts = interface_addresses() if host.strip("[]") in WILDCARDS else [host]
        addresses += [f"{one}:{bound_port}" for one in hosts]
    return tuple(dict.fromkeys(addresses))[:16]


def _with_port(address: str, port: str) -> str:
    host, colon, given = address.rpartition(":")
    if not colon:
        return f"{address}:{port}"
    return f"{host}:{port}" if given == "0" else address


def interface_addresses() -> list[str]:
    """IPv4 addresses of interfaces that are up, loopback last: it is right for peers on this host only."""
    stats = psutil.net_if_stats()
    found = [
        entry.address
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family == socket.AF_INET and name in stats and stats[name].isup
    ]
    return sorted(found, key=lambda address: address.startswith("127."))
