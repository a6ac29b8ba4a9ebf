"""SIGKILL of worker, agent, both and the whole group: the rest go on at once, and what can come back does."""

from __future__ import annotations

import time

import pytest

from tests.e2e.cluster import Cluster, Peer
from tests.e2e.lineage import check_run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

BACK_S = 120.0
"""A restarted worker imports torch again, at the lowest priority."""


def kill_and_see(cluster: Cluster, peers: list[Peer], victim: str, what: str) -> None:
    """The others go on at once; unless its launcher died too, the victim becomes a member again."""
    doomed = cluster.peers[victim]
    survivors = [peer for peer in peers if peer is not doomed and peer.launcher.poll() is None]
    at = doomed.kill(what)
    cluster.go_on_without({victim}, survivors, at)
    if what != "group":
        cluster.until_member(doomed, since=at, seconds=BACK_S)


KILLS = {
    2: [("a", "worker"), ("b", "agent"), ("a", "group")],
    3: [("a", "both"), ("b", "worker"), ("c", "group"), ("b", "group")],
    4: [("a", "agent"), ("b", "both"), ("d", "group")],
}
"""Number of peers -> who is killed how, one after the other. `a` founds the run."""


@pytest.mark.parametrize("count", KILLS)
def test_kills_one_after_the_other(cluster: Cluster, count: int) -> None:
    job = cluster.job()
    peers = cluster.found("abcd"[:count], job)
    for victim, what in KILLS[count]:
        kill_and_see(cluster, peers, victim, what)
    rest = [peer for peer in peers if peer.launcher.poll() is None]
    cluster.finish(rest)
    check_run(cluster, job, rest)


def test_two_kills_in_one_step(cluster: Cluster) -> None:
    """An agent and another peer's worker at the same moment, then two groups of four: two of each time go on."""
    job = cluster.job()
    a, b, c, d = peers = cluster.found("abcd", job)
    at = b.kill("agent")
    c.kill("worker")
    cluster.go_on_without("bc", [a, d], at)
    for peer in (b, c):
        cluster.until_member(peer, since=at, seconds=BACK_S)
    at = a.kill("group")
    d.kill("group")
    cluster.go_on_without("ad", [b, c], at)
    cluster.finish([b, c])
    check_run(cluster, job, peers[1:3])


LARGE_MB = 96
"""State of a run in which fetching takes long enough to be hit."""


def until_fetching(cluster: Cluster, joiner: Peer, since: float) -> None:
    """Until `joiner` pulls shards that several donors have promised."""

    def fetches() -> bool:
        phases = [e for e in joiner.entries("learner") if e["wall"] > since]
        return bool(phases) and phases[-1]["phase"] == "fetch"

    cluster.until(fetches, BACK_S, f"{joiner.name} fetches the state", pause=0.001)


def test_donors_and_joiners_die_while_the_state_is_fetched(cluster: Cluster) -> None:
    job = cluster.job(frozen_mb=LARGE_MB, sleep_s=0.05)
    a, b = cluster.found("ab", job)
    c = cluster.start("c", job, join=[a.address()])
    until_fetching(cluster, c, since=0.0)
    at = b.kill("agent")  # a donor
    cluster.go_on_without("b", [a], at)
    cluster.until_member(c)
    until_fetching(cluster, b, since=at)
    at = b.kill("worker")  # a joiner's; its agent goes on fetching
    cluster.until_member(b, since=at, seconds=BACK_S)
    at = c.kill("agent")
    until_fetching(cluster, c, since=at)
    at = c.kill("agent")  # a joiner
    until_fetching(cluster, c, since=at)
    at = a.kill("worker")  # a donor, and the founder
    cluster.go_on_without("a", [b], at)
    for peer in (c, a):
        cluster.until_member(peer, since=at, seconds=BACK_S)
    cluster.finish([a, b, c])
    check_run(cluster, job, [a, b, c])


def test_whole_groups_die_while_the_state_is_fetched(cluster: Cluster) -> None:
    job = cluster.job(frozen_mb=LARGE_MB, sleep_s=0.05)
    a, b, c = cluster.found("abc", job)
    d = cluster.start("d", job, join=[b.address()])
    until_fetching(cluster, d, since=0.0)
    before = max(peer.step for peer in (a, b, c))
    at = d.kill("group")  # a joiner
    cluster.until(lambda: min(peer.step for peer in (a, b, c)) > before + 3, 2, "nobody waits for a dead joiner")
    e = cluster.start("e", job, join=[c.address()])
    until_fetching(cluster, e, since=0.0)
    at = a.kill("group")  # a donor, and the founder
    cluster.go_on_without("a", [b, c], at)
    cluster.until_member(e)
    cluster.finish([b, c, e])
    check_run(cluster, job, [b, c, e])


def test_a_new_worker_takes_the_snapshot_that_its_agent_holds_for_a_joiner(cluster: Cluster) -> None:
    """It comes out of the agent's memory, with the results since, some of which lie on disk: nobody is asked for it."""
    job = cluster.job(frozen_mb=100, sleep_s=0.05)
    a, b, c = cluster.found("abc", job)
    d = cluster.start("d", job, join=[a.address()])
    until_fetching(cluster, d, 0.0)
    d.freeze()
    cluster.until(lambda: bool(b.entries("results_on_disk")), 10.0, "b moves results to disk that only d needs")
    time.sleep(0.5)  # some more, whose memory is then used for others
    assert not d.entries("fetched_state"), "d was frozen too late for this test"
    at = b.kill("worker")
    cluster.until_member(b, since=at)
    start = [line for line in b.entries("catch_up_from") if line["wall"] > at]
    loaded = [line for line in b.entries("fetched_state") if line["wall"] > at]
    assert [line["source"] for line in start] == ["own snapshot"]
    assert loaded[0]["sources"] == {} and loaded[0]["held"] >= loaded[0]["bytes"] > 100e6
    assert loaded[0]["step"] == [line for line in b.entries("snapshot") if line["wall"] < at][-1]["step"]
    assert not b.entries("digests_differ"), "a result that lay on disk was read where it had been before"
    d.freeze(frozen=False)
    cluster.until_member(d)
    cluster.finish([a, b, c, d])
    check_run(cluster, job, [a, b, c, d])
