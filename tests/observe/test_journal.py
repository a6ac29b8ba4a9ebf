"""What agents keep and tell each other of their traces: bounded, without data, and checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.agent.observer import Observer
from chaos.core.errors import RemoteProtocolError
from chaos.observe.journal import KEPT, MAX_LINE, OTHERS, Journal, brief, places
from chaos.observe.sentences import sentence
from chaos.observe.spread import MAX_BYTES, MAX_LINES, RATE, WAITING, Inbox, Outbox
from chaos.observe.trace import TraceWriter


def line(kind: str = "note", **fields: Any) -> dict[str, Any]:
    return {"t": 1.0, "wall": 2.0, "stamp": 3, "n": 4, "peer": "a", "in_view": 1, "at_step": 2, "kind": kind, **fields}


def everything(journal: Journal, limit: int = 10**9) -> list[dict[str, Any]]:
    return [json.loads(found) for found in journal.since(0, limit)[0]]


def test_lines_come_in_order_and_each_once() -> None:
    journal = Journal()
    kinds = ["view", "note", "commit", "note", "sample"]
    for number, kind in enumerate(kinds):
        journal.add(kind, brief(line(kind, number=number)))
    assert [found["number"] for found in everything(journal)] == [0, 1, 2, 3, 4]
    found, number, pages = [], 0, 0
    while page := journal.since(number, 300)[0]:
        found += [json.loads(text)["number"] for text in page]
        number = journal.since(number, 300)[1]
        pages += 1
    assert found == [0, 1, 2, 3, 4]
    assert pages > 1
    journal.add("note", brief(line(number=5)))
    assert [json.loads(text)["number"] for text in journal.since(number, 10**9)[0]] == [5]


def test_a_flood_of_one_kind_pushes_no_other_out_and_memory_is_bounded() -> None:
    journal = Journal()
    journal.add("view", brief(line("view", number=-1)))
    for number in range(3 * OTHERS):
        journal.add("doubt", brief(line("doubt", number=number)))
        journal.add("commit", brief(line("commit", number=number)))
    found = everything(journal)
    assert len(found) == 1 + OTHERS + KEPT["commit"]
    assert found[0]["number"] == -1


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.text() | st.integers(-(2**53), 2**53),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_whatever_a_line_holds_it_is_short_enough(value: Any) -> None:
    for grown in (value, [value] * 500, str(value) * 1000, {f"k{i}" * 50: value for i in range(300)}):
        short = brief(line(value=grown))
        assert len(short) <= MAX_LINE
        assert json.loads(short)["stamp"] == 3


def test_a_traceback_leaves_the_agent_without_what_it_may_tell_of_data() -> None:
    try:
        secret = {"patient 4711": 3}
        raise KeyError(f"nothing for {secret}")
    except KeyError as error:
        import traceback

        text = "".join(traceback.format_exception(error))
    assert "4711" in text
    short = json.loads(brief(line("worker_failed", traceback=text)))["traceback"]
    assert "4711" not in short and "secret" not in short
    assert short.endswith("KeyError") and "test_journal.py" in short
    assert places("") == ""


def test_other_parties_get_neither_files_nor_tracebacks(tmp_path: Path) -> None:
    observer = Observer(TraceWriter(tmp_path / "t", "alice"), lambda: (0, 0))
    observer.write(
        "worker_failed", {"traceback": 'Traceback\n  File "/home/alice/train.py", line 3, in fit\nKeyError: 7'}
    )
    observer.write("checkpoint", {"path": "/home/alice/checkpoints/7", "step": 7, "seconds": 1.0})
    observer.write("dial_failed", {"address": "10.1.2.3:7000", "reason": "nobody there"})
    observer.write("suspect", {"peer": "bob", "reason": "silent"})
    told = Inbox().take("id", "alice", observer.news(), 0.0)
    assert [found["kind"] for found in told] == ["worker_failed", "suspect"]
    assert "traceback" not in told[0]
    abroad, home = (observer.lines(0, at_home)["lines"] for at_home in (False, True))
    assert [json.loads(text)["kind"] for text in abroad] == ["suspect"]
    assert [json.loads(text)["kind"] for text in home] == ["worker_failed", "checkpoint", "dial_failed", "suspect"]
    for text in (observer.news().decode(), *abroad):
        assert "/home/alice" not in text
    assert "train.py" in home[0] and "7" not in json.loads(home[0])["traceback"].splitlines()[-1]
    observer.close()


def test_what_is_told_is_small_bounded_and_leaves_out_what_others_have_themselves() -> None:
    outbox = Outbox()
    outbox.add("commit", brief(line("commit")))
    outbox.add("view", brief(line("view")))
    assert outbox.take() == b""
    for number in range(2 * WAITING):
        outbox.add("note", brief(line(number=number, text="x" * 900)))
    told: list[int] = []
    while message := outbox.take():
        assert len(message) <= MAX_BYTES
        lines = Inbox().take("id", "b", message, 0.0)
        assert 0 < len(lines) <= MAX_LINES
        told += [found["number"] for found in lines]
    assert told == list(range(WAITING, 2 * WAITING)), "the newest"


def test_nobody_s_word_is_taken_for_what_a_member_sees_itself() -> None:
    told = [line("view", view=2**62), line("commit", step=2**62), line("note")]
    assert [found["kind"] for found in Inbox().take("id", "mallory", msgspec.json.encode(told), 0.0)] == ["note"]


def test_a_peer_speaks_in_its_own_name_only() -> None:
    (found,) = Inbox().take("id", "mallory", msgspec.json.encode([line(peer="alice")]), 0.0)
    assert found["peer"] == "mallory"


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"[1]", b"[{}]", b'[{"kind": 1}]', b"\xff", b"[" * 5000, msgspec.json.encode([line()] * 129)],
)
def test_what_is_no_line_is_refused(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        Inbox().take("id", "mallory", body, 0.0)


def test_too_long_a_message_is_refused_and_one_that_sends_too_often_is_not_heard() -> None:
    inbox, one = Inbox(), msgspec.json.encode([line()])
    with pytest.raises(RemoteProtocolError, match="bytes"):
        inbox.take("id", "mallory", msgspec.json.encode([line(text="x" * MAX_BYTES)]), 0.0)
    heard = [len(inbox.take("id", "mallory", one, 5.0 + 0.01 * i)) for i in range(3 * RATE)]
    assert sum(heard) == RATE
    assert len(inbox.take("other", "bob", one, 5.5)) == 1
    assert len(inbox.take("id", "mallory", one, 6.0)) == 1
    inbox.forget({"other"})
    assert list(inbox._heard) == ["other"]


@pytest.mark.parametrize("kind", ["view", "handled", "commit", "gone", "worker_failed", "stop", "no such kind"])
def test_a_line_that_lacks_what_its_kind_has_is_still_shown(kind: str) -> None:
    assert "odd 1" in sentence(line(kind, odd=1))


def test_lines_in_words() -> None:
    handled = line(
        "handled", view=3, handling_ms=4.25, computing_ms=0.5, acting_ms=0.25, waiting_ms=3.5, proposer=True,
        causes=[["scale-in", "bob"]],
    )  # fmt: skip
    expected = "view 3 handled in 4.2 ms (0.50 computing, 0.25 sending, 3.5 waiting), proposed here: bob leaves"
    assert sentence(handled) == expected
    assert sentence(line("suspect", about="bob", reason="nobody hears it")) == "suspects bob: nobody hears it"
