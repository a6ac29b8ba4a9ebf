"""Which algorithm a lane's connection uses, and what makes it change."""

from __future__ import annotations

import socket

import pytest

from chaos.agent.transport import congestion
from chaos.agent.transport.congestion import PATIENCE, LossWatch

MB = 10**6


def test_losses_at_every_look_are_the_links() -> None:
    watch = LossWatch()
    looks = [watch.look(sent=MB * n, again=5 * n) for n in range(1, PATIENCE + 2)]
    assert looks == [False] * (PATIENCE - 1) + [True, True]


def test_what_one_slow_start_loses_says_nothing() -> None:
    watch = LossWatch()
    totals = [(MB, 40), (2 * MB, 60), *((n * MB, 60) for n in range(3, 8)), (8 * MB, 90), (9 * MB, 110)]
    assert not any(watch.look(sent, again) for sent, again in totals)


def test_a_link_that_rests_between_bursts_is_not_taken_for_a_good_one() -> None:
    watch = LossWatch()
    totals = [(n // 3 * MB, n // 3) for n in range(3, 3 * PATIENCE + 3)]  # three looks per burst, each with a loss
    assert watch.look(*totals[0]) is False
    assert [watch.look(*total) for total in totals[1:]].index(True) == 3 * (PATIENCE - 1) - 1


@pytest.fixture
def connection() -> socket.socket:
    with socket.create_server(("127.0.0.1", 0)) as server:
        sock = socket.create_connection(server.getsockname())
        server.accept()[0].close()
    with sock:
        yield sock


def test_the_kernels_choice_stays_where_an_algorithm_is_not_there(connection: socket.socket) -> None:
    def algorithm() -> bytes:
        return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")

    before = algorithm()
    assert not congestion.use(connection, "no-such-one")
    assert algorithm() == before
    assert congestion.use(connection, "reno"), "every Linux has it"
    assert algorithm() == b"reno"
    assert congestion.retransmitted(connection) == 0
