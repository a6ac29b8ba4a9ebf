"""Chunks and their roots: complete, aligned, balanced, and with the least traffic on equal links."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.core.errors import ChaosError
from chaos.core.types import Layout, Segment
from chaos.planning.sync import chunks, root, sent_bytes


def layout_of(sizes: list[int], gap: int = 0) -> Layout:
    """Segments of these sizes at multiples of 64, with `gap` further units of 64 bytes between them."""
    segments, offset = [], 0
    for nbytes in sizes:
        segments.append(Segment(offset, nbytes, "float32", "mean"))
        offset += (-(-nbytes // 64) + gap) * 64
    return Layout(offset, tuple(segments), False)


layouts = st.builds(layout_of, st.lists(st.integers(0, 40_000), max_size=6), st.integers(0, 2))
members = st.integers(1, 9)
chunk_sizes = st.integers(1, 100).map(lambda units: 64 * units)


@given(layouts, members, chunk_sizes)
def test_chunks_cover_every_segment_once_and_in_order(layout: Layout, n: int, chunk_bytes: int) -> None:
    cut = chunks(layout, (1,) * n, chunk_bytes)
    assert [chunk.index for chunk in cut] == list(range(len(cut)))
    for number, segment in enumerate(layout.segments):
        end = segment.offset
        for chunk in cut:
            if chunk.segment == number:
                assert chunk.offset == end
                end += chunk.nbytes
        assert end == segment.offset + segment.nbytes


@given(layouts, members, chunk_sizes)
def test_chunks_are_bounded_and_aligned(layout: Layout, n: int, chunk_bytes: int) -> None:
    cut = chunks(layout, (1,) * n, chunk_bytes)
    for chunk in cut:
        segment = layout.segments[chunk.segment]
        last = chunk.offset + chunk.nbytes == segment.offset + segment.nbytes
        assert 0 < chunk.nbytes <= chunk_bytes
        assert chunk.offset % 64 == 0
        assert last or chunk.nbytes % 64 == 0


@given(layouts, members, chunk_sizes)
def test_every_member_is_root_of_an_equal_share(layout: Layout, n: int, chunk_bytes: int) -> None:
    """Of chunks to within one, and of each segment's bytes to within one unit of 64 and a cut-off end."""
    cut = chunks(layout, (1,) * n, chunk_bytes)
    owners = [root(chunk.index, (1,) * n) for chunk in cut]
    counts = [owners.count(rank) for rank in range(n)]
    assert max(counts) - min(counts) <= 1
    for number, segment in enumerate(layout.segments):
        for rank in range(n):
            own = sum(c.nbytes for c in cut if c.segment == number and root(c.index, (1,) * n) == rank)
            assert abs(own - segment.nbytes / n) < 128


@given(layouts, members, chunk_sizes)
def test_each_member_sends_the_least_any_all_reduce_can(layout: Layout, n: int, chunk_bytes: int) -> None:
    """2 (N-1)/N of the buffer on equal links, to within a chunk per segment (and the rounding to 64)."""
    cut = chunks(layout, (1,) * n, chunk_bytes)
    total = sum(segment.nbytes for segment in layout.segments)
    sent = [sent_bytes(cut, (1,) * n, rank) for rank in range(n)]
    assert sum(sent) == 2 * (n - 1) * total
    for one in sent:
        assert abs(one - 2 * (n - 1) * total / n) <= 128 * max(0, n - 2) * len(layout.segments)


def test_a_real_bucket_is_balanced_to_the_unit() -> None:
    """25 MB make 24 chunks of at most 1 MiB; 5 members get 25, so that each is root of 5."""
    layout = layout_of([25_000_000])
    for n, pieces in ((4, 24), (3, 24), (5, 25), (64, 64)):
        cut = chunks(layout, (1,) * n, 2**20)
        assert len(cut) == pieces
        sent = [sent_bytes(cut, (1,) * n, rank) for rank in range(n)]
        assert max(sent) <= 2 * (n - 1) / n * 25_000_000 + 64 * (n - 1)


def test_two_members_send_half_of_the_buffer_twice() -> None:
    cut = chunks(layout_of([4096]), (1, 1), 1024)
    assert [(c.index, c.segment, c.offset, c.nbytes) for c in cut] == [
        (0, 0, 0, 1024),
        (1, 0, 1024, 1024),
        (2, 0, 2048, 1024),
        (3, 0, 3072, 1024),
    ]
    assert [root(c.index, (1, 1)) for c in cut] == [0, 1, 0, 1]
    assert [sent_bytes(cut, (1, 1), rank) for rank in (0, 1)] == [4096, 4096]


def test_small_segments_go_to_different_roots() -> None:
    """Biases are often a few bytes each; one member must not get all of them."""
    cut = chunks(layout_of([8] * 6), (1, 1, 1), 1024)
    assert [root(c.index, (1, 1, 1)) for c in cut] == [0, 1, 2, 0, 1, 2]


def test_alone_nothing_is_sent() -> None:
    assert sent_bytes(chunks(layout_of([5000, 3]), (1,), 640), (1,), 0) == 0


@pytest.mark.parametrize(
    ("shares", "chunk_bytes", "complaint"),
    [((), 64, "at least one root"), ((1, 1), 0, "chunks of 0 bytes"), ((1, 1), 100, "chunks of 100 bytes")],
)
def test_senseless_input(shares: tuple[int, ...], chunk_bytes: int, complaint: str) -> None:
    with pytest.raises(ChaosError, match=complaint):
        chunks(layout_of([100]), shares, chunk_bytes)


@given(layouts, st.lists(st.integers(0, 8), min_size=1, max_size=9).filter(any), chunk_sizes)
def test_roots_have_their_shares(layout: Layout, shares: list[int], chunk_bytes: int) -> None:
    """Of the chunks, to within one turn; who has no share is root of nothing."""
    cut = chunks(layout, shares, chunk_bytes)
    owners = [root(chunk.index, tuple(shares)) for chunk in cut]
    turns, rest = divmod(len(cut), sum(shares))
    for rank, share in enumerate(shares):
        assert turns * share <= owners.count(rank) <= turns * share + min(rest, share)
