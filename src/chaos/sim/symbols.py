"""What stands for the real thing in a simulation: identities, signatures, and digests of symbols."""

from __future__ import annotations

import hashlib
from typing import Any

from chaos.core.types import Fingerprint, Layout, PeerInfo

FINGERPRINT = Fingerprint((), (), "sgd", "2", "")
LAYOUT = Layout(64, (), False)

Part = tuple[str, int, int, tuple[tuple[int, int, int], ...]]
"""One gradient: (peer's name, step, view id of the attempt, sample ranges as (epoch, start, stop))."""
Result = tuple[Part, ...]
"""A sum of gradients: the sorted multiset of its parts, so that what is lost or counted twice shows."""


def digest(*parts: Any) -> bytes:
    return hashlib.sha256(repr(parts).encode()).digest()[:16]


def peer_id(index: int) -> str:
    return f"{index:016x}"


def index_of(peer: str) -> int:
    return int(peer, 16)


def info(index: int, incarnation: int = 1) -> PeerInfo:
    return PeerInfo(peer_id(index), incarnation, f"p{index}", "ab" * 32, index.to_bytes(4, "big") * 8, (f"h{index}:1",))


def sign(words: bytes) -> bytes:
    return hashlib.sha512(words).digest()


def verify(_key: bytes, signature: bytes, words: bytes) -> bool:
    return signature == sign(words)
