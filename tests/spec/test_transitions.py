"""The transition tables in docs/protocol.md are what the code does."""

from __future__ import annotations

from tests.spec.transitions import BEGIN, DOCUMENT, END, updated


def test_the_tables_in_the_protocol_are_up_to_date() -> None:
    document = DOCUMENT.read_text()
    assert document.count(BEGIN) == document.count(END) == 1
    assert updated(document) == document, "run: python -m tests.spec.transitions"
