"""Tables for the parts that are functions or nearly so: succession, lineage, detector, admission."""

from __future__ import annotations

from dataclasses import replace as with_fields

import msgspec
import pytest
from msgspec.structs import replace

from chaos.core.admission import difference
from chaos.core.data import declare
from chaos.core.detector import Detector, DetectorConfig
from chaos.core.lineage import commit, first_head
from chaos.core.messages import Report
from chaos.core.succession import Wishes, after_failure, planned
from chaos.core.types import DataState, Fingerprint, FirstLease, PeerInfo, SampleRange, TensorSpec, View
from chaos.core.worker_messages import Contribution
from chaos.sim.symbols import info, peer_id

A, B, C, D, J = (info(i) for i in range(5))


def view(members: tuple[PeerInfo, ...] = (A, B, C), learners: tuple[PeerInfo, ...] = (), first: int = 5) -> View:
    return View("one", 7, members, learners, first, False, (), "base")


def at(finished: int, opened: int | None = None) -> Report:
    return Report(finished, finished if opened is None else opened, True)


# --- succession -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reports", "down", "members", "learners", "first", "sources"),
    [
        ({A: 9, B: 9, C: 9}, [], (A, B, C), (), 10, (A, B, C)),
        ({A: 9, B: 10}, [], (A, B), (), 11, (B,)),
        ({A: 9, B: 9, C: 9}, [C], (A, B), (C,), 10, (A, B)),
        ({A: 9, B: 9, C: 10}, [C], (A, B), (C,), 11, (C,)),  # only the one without a worker has the result
        ({A: 9, B: 10, C: 10}, [C], (A, B), (C,), 11, (B,)),
        ({B: 9}, [], (B,), (), 10, (B,)),
    ],
)
def test_after_failure(
    reports: dict[PeerInfo, int],
    down: list[PeerInfo],
    members: tuple[PeerInfo, ...],
    learners: tuple[PeerInfo, ...],
    first: int,
    sources: tuple[PeerInfo, ...],
) -> None:
    wishes = Wishes(worker_down={p.id for p in down}, admit={J.id: J}, ready={D.id: 9})
    result = after_failure(view(learners=(D,)), {p.id: at(f) for p, f in reports.items()}, wishes, "silent")
    assert result is not None and result.abort and result.id == 8
    assert result.members == members
    assert result.learners == (D, *learners), "a failure promotes and admits nobody"
    assert (result.first_step, result.sources) == (first, tuple(p.id for p in sources))


def test_after_failure_of_all_workers_nobody_is_left() -> None:
    wishes = Wishes(worker_down={A.id, B.id})
    assert after_failure(view((A, B)), {A.id: at(9), B.id: at(9)}, wishes, "worker died") is None


@pytest.mark.parametrize(
    ("wishes", "releasing", "members", "learners"),
    [
        (Wishes(admit={J.id: J}), (), (A, B, C), (D, J)),
        (Wishes(ready={D.id: 8}), (), (A, B, C, D), ()),
        (Wishes(ready={D.id: 8}, lost_learners={D.id}), (), (A, B, C), ()),
        (Wishes(), (B.id,), (A, C), (D,)),
        (Wishes(ready={D.id: 8}, admit={J.id: J}), (A.id,), (B, C, D), (J,)),
        (Wishes(ready={D.id: 8}, admit={D.id: info(3, 2)}), (), (A, B, C), (info(3, 2),)),
        (Wishes(admit={B.id: info(1, 2)}), (), (A, B, C), (D,)),  # its former self is a member still
        (Wishes(), (), (A, B, C), (D,)),
    ],
)
def test_planned(
    wishes: Wishes, releasing: tuple[str, ...], members: tuple[PeerInfo, ...], learners: tuple[PeerInfo, ...]
) -> None:
    reports = {A.id: at(8, 9), B.id: at(8), C.id: at(9)}
    result = planned(view(learners=(D,)), reports, wishes, releasing)
    assert (result.members, result.learners) == (members, learners)
    assert (result.first_step, result.abort, result.id) == (10, False, 8)


def test_planned_never_starts_before_its_base() -> None:
    reports = {p.id: at(2) for p in (A, B, C)}
    assert planned(view(first=5), reports, Wishes(), ()).first_step == 5


def test_first_leases_stay_what_they_are_while_their_step_may_be_tried_again() -> None:
    """Who stays may have computed samples that it was granted behind one that has gone since."""
    reports = {p.id: at(8, 9) for p in (A, B, C)}
    first = planned(view(learners=(D, J)), reports, Wishes(ready={D.id: 8}), ())
    assert (first.first_step, first.first_leases) == (10, (FirstLease(10, D.id, 8),))
    again = planned(first, reports | {D.id: at(8, 9)}, Wishes(ready={J.id: 6}), (D.id,))
    assert (again.first_step, again.first_leases) == (10, (FirstLease(10, D.id, 8), FirstLease(10, J.id, 6)))
    later = planned(first, reports | {D.id: at(9, 10)}, Wishes(ready={J.id: 6}), ())
    assert later.first_leases == (FirstLease(10, D.id, 8), FirstLease(11, J.id, 6)), "A to C may have to repeat step 9"
    over = planned(later, {p.id: at(10) for p in (A, B, C, D, J)}, Wishes(), ())
    assert over.first_leases == (FirstLease(11, J.id, 6),)


@pytest.mark.parametrize(
    ("least", "most", "leases"),
    [
        (8, 8, (FirstLease(9, D.id, 8), FirstLease(9, J.id, 6))),
        (8, 9, (FirstLease(10, D.id, 8), FirstLease(10, J.id, 6))),
        (9, 10, (FirstLease(10, D.id, 8), FirstLease(11, J.id, 6))),  # if B is lost too, A tries step 10 once more
        (10, 11, (FirstLease(11, J.id, 6),)),
        (11, 11, ()),
    ],
)
def test_after_a_failure_new_members_begin_with_its_first_step(
    least: int, most: int, leases: tuple[FirstLease, ...]
) -> None:
    base = replace(view((A, B, C, D, J)), first_leases=(FirstLease(10, D.id, 8), FirstLease(11, J.id, 6)))
    after = after_failure(base, {A.id: at(least), B.id: at(most), J.id: at(least)}, Wishes(), "silent")
    assert after is not None and after.first_leases == leases


def test_wishes_forget_what_a_view_has_settled() -> None:
    renewed = info(3, 2)
    wishes = Wishes(
        admit={J.id: J, D.id: renewed},
        ready={D.id: 8, J.id: 9},
        leaving={B.id: 8, A.id: 8},
        done={B.id},
        worker_down={C.id},
        lost_learners={D.id},
    )
    wishes.forget(view((A,), (J,)), view(learners=(J,)))
    assert wishes == Wishes(admit={D.id: renewed}, ready={J.id: 9}, leaving={A.id: 8})
    wishes.forget(view((A,), (J,)), view((A,), (info(4, 9),)))
    assert not wishes.ready, "a new incarnation has shown nothing yet"


# --- lineage --------------------------------------------------------------------------------------------------------


def one(weight: float, loss: float | None = 1.0, touched: bytes = b"\1", scalars: bytes = b"") -> Contribution:
    ranges = (SampleRange(0, 0, int(weight)),) if weight else ()
    return Contribution(weight, weight == 0, loss, ranges, touched, scalars, 0, False)


def test_commit() -> None:
    parts = {A.id: one(1, 4.0, b"\1", b""), B.id: one(3, 2.0, b"\0\2", b"lr"), C.id: one(0, None)}
    done = commit(b"before", DataState(), view(), 5, parts, b"digest", ())
    assert (done.weight, done.loss, done.touched, done.scalars, done.skip) == (4.0, 2.5, b"\1\2", b"lr", "")
    assert done.before == b"before" and done.head != done.before


def test_head_depends_on_everything_that_made_the_step() -> None:
    def head(**changes: object) -> bytes:
        given = {"head": b"h", "view": view(), "step": 5, "parts": {A.id: one(1)}, "digest": b"d"} | changes
        return commit(
            given["head"], DataState(), given["view"], given["step"], given["parts"], given["digest"], ()
        ).head

    changed = [
        head(),
        head(head=b"x"),
        head(step=6),
        head(digest=b"x"),
        head(view=msgspec.structs.replace(view(), id=8)),
        head(view=msgspec.structs.replace(view(), lineage="two")),
        head(parts={B.id: one(1)}),
        head(parts={A.id: one(2)}),
        head(parts={A.id: one(1), B.id: one(0)}),
    ]
    assert len(set(changed)) == len(changed)
    assert first_head("run", "one") != first_head("run", "two")


@pytest.mark.parametrize(
    ("weights", "nonfinite", "skip"),
    [
        ([1, 2], (), ""),
        ([0, 0], (), "no member had samples"),
        ([1, 2], (B.id,), "non-finite gradient from p1"),
    ],
)
def test_skips(weights: list[int], nonfinite: tuple[str, ...], skip: str) -> None:
    parts = {p.id: one(w) for p, w in zip((A, B), weights, strict=True)}
    assert commit(b"h", DataState(), view(), 5, parts, b"d", nonfinite).skip == skip


def test_samples_of_a_skipped_step_are_used_up() -> None:
    data = msgspec.structs.replace(declare(DataState(), "shard", 10), free=((0, 10),))
    parts = {A.id: msgspec.structs.replace(one(0), want=4)}
    data = commit(b"h", data, view((A,)), 5, parts, b"d", ()).data
    used = Contribution(4.0, False, None, (SampleRange(0, 0, 4),), b"", b"", 0, False)
    assert commit(b"h", data, view((A,)), 6, {A.id: used}, b"d", (A.id,)).data.free == ((4, 10),)


# --- detector -------------------------------------------------------------------------------------------------------

CONFIG = DetectorConfig()


def steady(interval: float, count: int = 50) -> Detector:
    detector = Detector(CONFIG)
    detector.watch("p", 0.0)
    for beat in range(1, count + 1):
        detector.heard("p", beat * interval)
    return detector


def test_a_steady_peer_times_out_at_the_floor() -> None:
    detector = steady(0.2)
    assert detector.timeout("p") == CONFIG.floor_s
    assert detector.overdue(10.0 + CONFIG.floor_s) == []
    assert detector.overdue(10.01 + CONFIG.floor_s) == ["p"]


def test_an_unsteady_peer_gets_more_time_but_not_for_ever() -> None:
    detector = Detector(CONFIG)
    now = 0.0
    for beat in range(60):
        now += 0.05 if beat % 2 else 0.7
        detector.heard("p", now)
    assert CONFIG.floor_s < detector.timeout("p") <= CONFIG.ceiling_s
    assert detector.overdue(now + CONFIG.ceiling_s + 0.01) == ["p"]


def test_who_is_forgotten_is_not_overdue() -> None:
    detector = steady(0.2)
    detector.forget("p")
    assert detector.overdue(1e9) == []
    assert detector.silence("p", 1e9) == float("inf")


def test_who_never_spoke_is_overdue_all_the_same() -> None:
    detector = Detector(with_fields(CONFIG, floor_s=0.5))
    detector.watch("p", 3.0)
    assert detector.overdue(3.4) == []
    assert detector.overdue(5.3) == ["p"]


# --- admission ------------------------------------------------------------------------------------------------------

MODEL = Fingerprint((TensorSpec("w", "float32", (2, 3)), TensorSpec("b", "float32", (3,))), (), "sgd", "2.6", "x")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"tensors": MODEL.tensors[:1]}, "no tensor 'b'"),
        ({"tensors": (*MODEL.tensors, TensorSpec("c", "float32", ()))}, "a tensor 'c'"),
        (
            {"tensors": (TensorSpec("w", "float32", (3, 2)), MODEL.tensors[1])},
            "float32[3, 2], the run's is float32[2, 3]",
        ),
        ({"tensors": MODEL.tensors[::-1]}, "another order"),
        ({"tied": (("w", "b"),)}, "tied tensors"),
        ({"optimizer": "adam"}, "optimizer is adam, the run's is sgd"),
        ({"torch": "2.7"}, "torch version is 2.7, the run's is 2.6"),
        ({"options": "y"}, "session options"),
    ],
)
def test_difference_names_what_differs(changes: dict[str, object], said: str) -> None:
    found = difference(MODEL, msgspec.structs.replace(MODEL, **changes))
    assert said in found and bool(found) == bool(said)


def test_ids_of_the_world_are_ids() -> None:
    assert peer_id(3) == info(3).id
