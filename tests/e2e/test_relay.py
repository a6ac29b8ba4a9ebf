"""Two peers that cannot reach each other train through a third."""

from __future__ import annotations

import pytest

from tests.e2e.cluster import START_S, Cluster
from tests.e2e.lineage import check_run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


def test_peers_without_a_direct_path_are_relayed(cluster: Cluster) -> None:
    job = cluster.job()
    a = cluster.start("a", job, "--min-peers", "3")
    hidden = [cluster.start(n, job, "--advertise", "127.0.0.1:1", join=[a.address()]) for n in "bc"]
    cluster.until(lambda: min(p.step for p in (a, *hidden)) > 20, START_S, "three train, two of them by relay")
    cluster.finish([a, *hidden])
    check_run(cluster, job, [a, *hidden])
    for peer in hidden:
        linked = {entry["about"] for entry in peer.entries("link_up")}
        assert linked == {"a"}, f"{peer.name} has links to {linked}: nothing was relayed"
