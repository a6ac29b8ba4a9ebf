"""`chaos plan shards`: requests in, answers and one-line errors out."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from chaos.cli import main as cli

DONORS = [
    {"name": "a", "bandwidth": 20e6, "latency": 0.1, "overhead": 0.0, "cap": None},
    {"name": "b", "bandwidth": 20e6, "latency": 0.1, "overhead": 0.0, "cap": 10e6},
    {"name": "idle", "bandwidth": 0, "latency": 0, "overhead": 0, "cap": None},
]
REQUEST = {"state_bytes": 29_500_000, "chain": [1_000_000, 4_000_000], "downlink": None, "donors": DONORS}


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command on a text; gives its exit code, standard output and standard error."""

    def run(text: str | bytes, *options: str) -> tuple[int, str, str]:
        given = text.encode() if isinstance(text, str) else text
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given)))
        monkeypatch.setattr("sys.argv", ["chaos", "plan", "shards", *options])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return run


def test_the_answer_as_json(ask: Any) -> None:
    code, out, err = ask(json.dumps(REQUEST), "--json")
    assert (code, err, out.count("\n")) == (0, "", 1)
    assert json.loads(out) == {
        "shard_bytes": 1_000_000,
        "counts": {"a": 20, "b": 10, "idle": 0},
        "finish_s": 1.1,
        "limit_s": 29.5 / 30,
        "reason": "30 shards of 1000000 bytes from 2 of 3 donors; a is the last to finish, after 1.100 s",
    }


def test_the_downlink_counts(ask: Any) -> None:
    _, out, _ = ask(json.dumps({**REQUEST, "downlink": 10e6}), "--json")
    assert (json.loads(out)["finish_s"], json.loads(out)["limit_s"]) == (2.95, 2.95)


def test_links_add_the_ways(ask: Any) -> None:
    links = [
        {"source": "a", "target": "b", "bandwidth": 5e6, "latency": 0.0},
        {"source": "b", "target": "joiner", "bandwidth": 10e6},
    ]
    _, out, _ = ask(json.dumps({**REQUEST, "links": links}), "--json")
    answer = json.loads(out)
    assert sum(answer["counts"].values()) == 30
    assert {tuple(route["via"]) for route in answer["routes"]} <= {("a", "b", "joiner"), ("b", "joiner")}
    assert answer["finish_s"] == pytest.approx(3.1, rel=1e-6)


def test_for_people(ask: Any) -> None:
    code, out, _ = ask(json.dumps({**REQUEST, "donors": [{"name": "[b]lab[/b]", "bandwidth": 1e6}]}))
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert ["[b]lab[/b]", "30", "30.0"] in lines
    assert "done after 30.000 s, 1.017 times the limit of 29.500 s" in out


def changed(**values: Any) -> str:
    return json.dumps({**REQUEST, **values})


def donor(**values: Any) -> str:
    return changed(donors=[{**DONORS[0], **values}])


@pytest.mark.parametrize("options", [(), ("--json",)])
@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no request on standard input: Input data was truncated"),
        ("{", "no request on standard input: Input data was truncated"),
        (b"\xff\xfe", "no request on standard input: JSON is malformed"),
        ("[]", "Expected `object`, got `array`"),
        ("{}", "missing required field `state_bytes`"),
        (changed(state_bytes=0), "state of 0 bytes"),
        (changed(state_bytes=-5), "state of -5 bytes"),
        (changed(state_bytes=1.5), "Expected `int`, got `float` - at `$.state_bytes`"),
        (changed(state_bytes="1"), "Expected `int`, got `str` - at `$.state_bytes`"),
        (changed(state_bytes=10**30), "state of 1000000000000000000000000000000 bytes"),
        (changed(chain=[]), "one or more sizes"),
        (changed(chain=[0]), "one or more sizes"),
        (changed(chain=[4, 6]), "shard sizes 4 and 6: list them ascending, each dividing the next"),
        (changed(chain=[8, 4]), "shard sizes 8 and 4: list them ascending"),
        (changed(chain=[4, 4]), "shard sizes 4 and 4"),
        (changed(downlink=0), "downlink of 0.0 B/s"),
        (changed(downlink=-1), "downlink of -1.0 B/s"),
        (changed(downlink=float("nan")), "JSON is malformed"),
        (changed(downlinks=1), "unknown field `downlinks`"),
        (changed(donors=[]), "no donor has bandwidth to spare (none listed)"),
        (changed(donors=[DONORS[2]]), "no donor has bandwidth to spare (idle)"),
        (changed(donors=[DONORS[0], DONORS[0]]), "donor a is listed twice"),
        (donor(bandwidth=-1), "donor a: bandwidth is -1.0"),
        (donor(bandwidth=float("inf")), "JSON is malformed"),
        (donor(bandwidth=1e300), "donor a: bandwidth is 1e+300"),
        (donor(latency=-0.1), "donor a: latency is -0.1"),
        (donor(overhead=-0.1), "donor a: cost per shard is -0.1"),
        (donor(cap=-1), "donor a: cap is -1.0"),
        (donor(cap=0), "no donor has bandwidth to spare (a)"),
        (donor(name="a\nb"), "at `$.donors[0].name`"),
        (donor(name=""), "at `$.donors[0].name`"),
        (donor(rate=1), "unknown field `rate`"),
        (changed(links=[]), "no way with bandwidth leads from a, b, idle to joiner"),
        (changed(links=[{"source": "a", "target": "a", "bandwidth": 1}]), "link from a to itself"),
    ],
)
def test_senseless_requests(ask: Any, options: tuple[str, ...], text: str | bytes, complaint: str) -> None:
    code, out, err = ask(text, *options)
    assert (code, out) == (1, "")
    assert err.startswith("chaos: error: ") and complaint in err
    assert err.count("\n") == 1
