"""`chaos party`: what it prints, for people and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from chaos.agent.party import Party
from chaos.cli.party import app
from chaos.core.errors import ChaosError


def call(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    return result.output


def call_json(*arguments: str | Path) -> dict[str, Any]:
    answer = json.loads(call(*arguments, "--json"))
    assert isinstance(answer, dict)
    return answer


def test_init_show_and_admit_as_json(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    made = call_json("init", "--name", "north", "--dir", a)
    assert made["fingerprint"] == Party.open(a).fingerprint
    assert made == {**made, "name": "north", "file": str(a / "ca.pem"), "admitted": []}
    other = call_json("init", "--name", "south", "--dir", b)
    admitted = call_json("admit", other["file"], "--dir", a)
    assert (admitted["fingerprint"], admitted["name"]) == (other["fingerprint"], "south")
    assert Path(admitted["file"]).read_bytes() == (b / "ca.pem").read_bytes()
    assert call_json("show", "--dir", a) == {**made, "admitted": [admitted]}


def test_for_people(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    output = call("init", "--name", "north", "--dir", a)
    fingerprint = Party.open(a).fingerprint
    assert output.splitlines() == [
        "party        north",
        f"fingerprint  {fingerprint}",
        f"expires      {Party.open(a).root.expires:%Y-%m-%d}",
        f"hand out     {a / 'ca.pem'}",
        "admitted     nobody; `chaos party admit FILE` admits a party",
    ]
    call("init", "--name", "south", "--dir", b)
    other = Party.open(b).fingerprint
    assert call("admit", b / "ca.pem", "--dir", a) == f"admitted south, party {other}\n"
    last = call("show", "--dir", a).splitlines()[-1]
    assert last.startswith(f"admitted     {other}  south, expires ")


def test_the_default_place_and_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("socket.gethostname", lambda: "_node 7.example")
    assert call_json("init")["name"] == "node-7.example"
    assert call_json("show")["file"] == str(tmp_path / ".config" / "chaos" / "party" / "ca.pem")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("show", "--dir", "DIR/none"), "there is no party in .*: make one with `chaos party init`"),
        (("init", "--dir", "DIR/p"), "already holds a party"),
        (("init", "--dir", "DIR/q", "--name", "a b"), "cannot name a party"),
        (("admit", "DIR/none.pem", "--dir", "DIR/p"), r"cannot read .*none\.pem: No such file"),
        (("admit", "DIR", "--dir", "DIR/p"), "cannot read .*: Is a directory"),
        (("admit", "/dev/zero", "--dir", "DIR/p"), "/dev/zero is too large"),
        (("admit", "DIR/p/ca.pem", "--dir", "DIR/p"), "this party itself"),
    ],
)
def test_errors_are_one_line(tmp_path: Path, arguments: tuple[str, ...], complaint: str) -> None:
    Party.init(tmp_path / "p", "lab")
    with pytest.raises(ChaosError, match=complaint) as caught:
        call(*(argument.replace("DIR", str(tmp_path)) for argument in arguments))
    assert "\n" not in str(caught.value)
