"""Learners of one snapshot serve each other what they have verified of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chaos.core.actions import ServeShards
from chaos.core.context import Context
from chaos.core.fetch import Fetch, from_bitmap, to_bitmap
from chaos.core.messages import Holding, ShardRequest, SnapshotMissing

if TYPE_CHECKING:
    from chaos.core.node import Node


class Sharing:
    """What one learner says to the others, and serves them, of the snapshot that it pulls or has pulled."""

    def __init__(self, ctx: Context, node: Node) -> None:
        self._ctx = ctx
        self._node = node
        self._clients: dict[str, int] = {}
        """Learners that this one serves, and the step of the snapshot."""

    def tell(self, fetch: Fetch, peer: str, answer: bool) -> None:
        """Say to another learner what is here of the snapshot that `fetch` brings."""
        if peer != self._ctx.id:
            offer = fetch.offer
            self._ctx.send(peer, Holding(offer.step, offer.head, to_bitmap(fetch.tell(peer)), answer))

    def on_holding(self, src: str, message: Holding) -> None:
        """Another learner pulls a snapshot: if it is the same one, it is a source, and this peer one for it."""
        fetch = self._node.learner.fetch
        if fetch is None or (message.step, message.head) != (fetch.offer.step, fetch.offer.head):
            return
        if not message.answer:
            self.tell(fetch, src, answer=True)
        fetch.share(src, from_bitmap(message.shards, len(fetch.offer.hashes)))

    def on_shard_request(self, src: str, message: ShardRequest) -> None:
        """Another learner asks for shards of the snapshot that this one pulls, or has pulled."""
        fetch = self._node.learner.fetch
        if fetch is None or message.step != fetch.offer.step:
            self._ctx.send(src, SnapshotMissing(message.step, self._node.steps.finished, "released"))
            return
        shards = tuple(s for s in message.shards if s < len(fetch.offer.hashes))
        self._clients[src] = message.step
        self._ctx.emit(ServeShards(src, message.step, shards, message.afresh, received=True))

    def dismiss(self) -> None:
        """What was pulled is not kept any more: those that it was served to look elsewhere."""
        clients, self._clients = self._clients, {}
        for peer, step in clients.items():
            self._ctx.send(peer, SnapshotMissing(step, self._node.steps.finished, "released"))
