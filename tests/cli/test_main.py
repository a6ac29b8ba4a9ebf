"""The command line: what reaches the agent's code, what is printed, and how errors end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chaos.agent import client, launcher
from chaos.agent.settings import RunSettings
from chaos.cli import main as cli
from chaos.cli.status import choose_address
from chaos.core.errors import ChaosError, Refused


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings but those of the test."""
    monkeypatch.chdir(tmp_path)
    for name in ("JOIN", "LISTEN", "ADDRESS", "NAME", "PARTY", "TRACE", "MIN_PEERS"):
        monkeypatch.delenv(f"CHAOS_{name}", raising=False)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Exit code of `chaos ARGUMENTS`."""
    monkeypatch.setattr("sys.argv", ["chaos", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[RunSettings]:
    """What the launcher was called with; it pretends that the run ended with code 5."""
    calls: list[RunSettings] = []

    def launch(settings: RunSettings) -> int:
        calls.append(settings)
        return 5

    monkeypatch.setattr(launcher, "launch", launch)
    return calls


def test_run_passes_every_option(monkeypatch: pytest.MonkeyPatch, launched: list[RunSettings]) -> None:
    Path("train.py").touch()
    options = ["--join", "a:1", "--join", "b:2", "--listen", "0.0.0.0:7000", "--advertise", "c:3", "--party", "p"]
    options += ["--name", "n", "--checkpoint", "c", "--checkpoint-every", "5", "--trace", "t", "--max-restarts", "2"]
    options += ["--straggler", "skip", "--straggler-limit", "7.5"]
    assert call(monkeypatch, "run", *options, "--plain", "train.py") == 5
    assert launched == [
        RunSettings(
            script=Path("train.py"),
            join=("a:1", "b:2"),
            listen=("0.0.0.0:7000",),
            advertise=("c:3",),
            party=Path("p"),
            name="n",
            straggler="skip",
            straggler_limit=7.5,
            checkpoint=Path("c"),
            checkpoint_every=5,
            trace=Path("t"),
            max_restarts=2,
            plain=True,
        )
    ]


def test_run_without_options_leaves_the_defaults(monkeypatch: pytest.MonkeyPatch, launched: list[RunSettings]) -> None:
    Path("train.py").touch()
    assert call(monkeypatch, "run", "train.py") == 5
    assert launched == [RunSettings(script=Path("train.py"))]


def test_the_script_s_own_options_are_passed_on(monkeypatch: pytest.MonkeyPatch, launched: list[RunSettings]) -> None:
    Path("train.py").touch()
    call(monkeypatch, "run", "--min-peers", "3", "train.py", "--name", "x", "-v", "--", "--help", "file")
    assert launched[0].args == ("--name", "x", "-v", "--", "--help", "file")
    assert (launched[0].name, launched[0].min_peers) == (None, 3)


@pytest.mark.parametrize(
    ("options", "limit_s"),
    [
        ((), None),
        (("--straggler", "wait"), 0.0),
        (("--straggler", "skip"), 30.0),
        (("--straggler", "skip", "--straggler-limit", "7.5"), 7.5),
    ],
)
def test_how_long_late_workers_are_waited_for(
    monkeypatch: pytest.MonkeyPatch, launched: list[RunSettings], options: tuple[str, ...], limit_s: float | None
) -> None:
    Path("train.py").touch()
    call(monkeypatch, "run", *options, "train.py")
    assert launched[0].straggler_limit_s == limit_s


def test_the_environment_is_used_where_no_argument_is(
    monkeypatch: pytest.MonkeyPatch, launched: list[RunSettings]
) -> None:
    Path("train.py").touch()
    monkeypatch.setenv("CHAOS_NAME", "from-environment")
    monkeypatch.setenv("CHAOS_JOIN", "e:1,f:2")
    call(monkeypatch, "run", "--join", "a:1", "train.py")
    assert (launched[0].name, launched[0].join) == ("from-environment", ("a:1",))


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (("run", "none.py"), 1, "chaos: error: there is no script none.py; check its path"),
        (("run", "--min-peers", "0", "here.py"), 1, "chaos: error: --min-peers is 0; give 1 or more"),
        (
            ("run", "--straggler-limit", "3", "here.py"),
            1,
            "chaos: error: --straggler-limit belongs to --straggler skip",
        ),
        (
            ("run", "--straggler", "skip", "--straggler-limit", "0", "here.py"),
            1,
            "chaos: error: --straggler-limit is 0; give seconds, above 0 and up to 86400",
        ),
        (("run", "--straggler", "drop", "here.py"), 1, "chaos: error: a setting does not fit"),
        (
            ("run", "--spill-gb", "-1", "here.py"),
            1,
            "chaos: error: --spill-gb is -1; give 0 (nothing on disk) to 1e+06",
        ),
        (("run", "--spill", "none", "here.py"), 1, "chaos: error: --spill: there is no directory none; make it"),
        (("demo", "--peers", "1"), 1, "chaos: error: --peers is 1; give 2 to 16"),
        (("demo", "--steps", "0"), 1, "chaos: error: --steps is 0; give 1 or more"),
        (("party", "show", "--dir", "none"), 1, "chaos: error: there is no party in none"),
    ],
)
def test_errors_are_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    complaint: str,
) -> None:
    Path("here.py").touch()
    assert call(monkeypatch, *arguments) == code
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(complaint)
    assert output.err.count("\n") == 1


def test_an_error_ends_with_its_own_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def launch(_settings: RunSettings) -> int:
        raise Refused("the run has another model")

    Path("train.py").touch()
    monkeypatch.setattr(launcher, "launch", launch)
    assert call(monkeypatch, "run", "train.py") == 4
    assert capsys.readouterr().err == "chaos: error: the run has another model\n"


def test_wrong_options_end_with_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "run", "--none", "train.py") == 2
    assert "--none" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [(), ("run",), ("demo",), ("status",), ("leave",)])
def test_help_tells_the_exit_codes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: tuple[str, ...]
) -> None:
    assert call(monkeypatch, *verb, "--help") == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "4 the run declined this peer" in words


# --- status and leave ---------------------------------------------------------------------------------

STATUS: dict[str, Any] = {
    "run": "6b",
    "peer": "north-1",
    "role": "member",
    "lineage": "ab",
    "view": 7,
    "step": 41,
    "stable": 40,
    "epoch": 2,
    "paused": None,
    "cut": [],
    "missing_parties": "1 of 2 parties are still there; without 48a33ab1 (c)",
    "other_lineages": {},
    "learner_phase": "idle",
    "catch_up": "",
    "straggler_limit_s": 30.0,
    "members": [
        {
            "name": "north-1",
            "id": "0" * 16,
            "role": "member",
            "party": "f" * 64,
            "addresses": ["10.0.0.1:7000", "192.168.0.1:7000"],
            "step": 41,
            "links": ["south-1"],
            "linked": True,
            "late": {"steps": 0, "of": 40, "last": 0},
            "share": 0.5,
            "suspect": False,
        },
        {
            "name": "south-1",
            "id": "1" * 16,
            "role": "learner",
            "party": "e" * 64,
            "addresses": ["10.0.0.2:7000"],
            "step": None,
            "links": [],
            "linked": True,
            "late": {"steps": 10, "of": 40, "last": 39},
            "share": None,
            "suspect": True,
        },
    ],
    "links": {"south-1": {"address": "10.0.0.2:7000", "rtt_ms": 1.25, "bytes_per_s": None}},
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What was asked of which agent."""
    calls: list[tuple[Any, ...]] = []

    def request_status(*arguments: Any) -> dict[str, Any]:
        calls.append(("status", *arguments))
        return STATUS

    def request_leave(*arguments: Any) -> str:
        calls.append(("leave", *arguments))
        return "north-1"

    monkeypatch.setattr(client, "request_status", request_status)
    monkeypatch.setattr(client, "request_leave", request_leave)
    monkeypatch.setattr(client, "local_addresses", lambda: ["127.0.0.1:1"])
    return calls


def test_status_for_people(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], asked: list[tuple[Any, ...]]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert call(monkeypatch, "status", "10.0.0.9:1") == 0
    assert asked == [("status", "10.0.0.9:1", None, False)]
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["view", "7"] in lines
    assert ["missing", "1", "of", "2", "parties", "are", "still", "there;", "without", "48a33ab1", "(c)"] in lines
    assert ["step", "41,", "stable", "up", "to", "40,", "epoch", "2"] in lines
    assert ["north-1", "member", "ffffffff", "41", "50%", "10.0.0.1:7000", "south-1"] in lines
    assert ["192.168.0.1:7000"] in lines
    left_out = ["10", "of", "40", "steps", "(25%),", "last", "39"]
    assert ["south-1", "learner,", "suspected", "eeeeeeee", *left_out, "10.0.0.2:7000"] in lines
    assert ["late", "workers", "left", "out", "of", "a", "step,", "after", "30", "s", "at", "the", "latest"] in lines
    assert ["south-1", "10.0.0.2:7000", "1.2", "ms", "not", "measured"] in lines


def test_status_as_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], asked: list[tuple[Any, ...]]
) -> None:
    assert call(monkeypatch, "status", "--json", "--party", "p", "--plain") == 0
    assert asked == [("status", "127.0.0.1:1", Path("p"), True)]
    assert json.loads(capsys.readouterr().out) == STATUS


def test_leave(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], asked: list[tuple[Any, ...]]
) -> None:
    monkeypatch.setenv("CHAOS_ADDRESS", "10.0.0.8:1")
    assert call(monkeypatch, "leave", "--json") == 0
    assert asked == [("leave", "10.0.0.8:1", None, False)]
    assert json.loads(capsys.readouterr().out) == {"leaving": "north-1"}


@pytest.mark.parametrize(
    ("given", "environment", "local", "chosen"),
    [
        ("a:1", {"CHAOS_ADDRESS": "b:1"}, ["c:1"], "a:1"),
        (None, {"CHAOS_ADDRESS": "b:1"}, ["c:1"], "b:1"),
        (None, {}, ["c:1"], "c:1"),
    ],
)
def test_whom_to_ask(given: str | None, environment: dict[str, str], local: list[str], chosen: str) -> None:
    assert choose_address(given, environment, local, alone=True) == chosen


def test_nobody_to_ask() -> None:
    with pytest.raises(ChaosError, match="no peer of yours runs on this host; give HOST:PORT"):
        choose_address(None, {}, [], alone=False)


def test_leaving_is_never_guessed() -> None:
    assert choose_address(None, {}, ["c:1", "d:1"], alone=False) == "c:1"
    with pytest.raises(ChaosError, match=r"several peers of yours run on this host \(c:1, d:1\)"):
        choose_address(None, {}, ["c:1", "d:1"], alone=True)
