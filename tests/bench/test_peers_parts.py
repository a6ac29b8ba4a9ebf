"""The parts of `benchmarks.peers` that need no processes: the churn's schedule, what is counted, the page, the file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.peers.__main__ import DEFAULT, parse
from benchmarks.peers.churn import LEAST, MOST, Goodput, goodput, schedule
from benchmarks.peers.hosts import telling
from benchmarks.peers.measure import NAMES, Plan
from benchmarks.peers.page import COSTS, EVENTS, cell, page, pictures, verdicts
from benchmarks.peers.places import Links, loopback_bytes
from benchmarks.peers.results import Observation, Results, Setting, read, write
from chaos.core.errors import ChaosError

OURS = Setting("chaos, plain links", "", "loopback", 0.0, 25)
THEIRS = Setting("torchft", "tight", "loopback", 0.0, 25)
MEASURES = {measure.key: measure for measure in (*EVENTS, *COSTS)}


# --- churn -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_a_schedule_never_leaves_too_few_or_too_many(seed: int) -> None:
    present = set(NAMES)
    for happening in schedule(600.0, 15.0, seed, NAMES):
        assert happening.host != NAMES[0], "the first host is spared"
        assert (happening.host in present) == (happening.do != "join")
        present ^= {happening.host} if happening.do != "freeze" else set()
        assert LEAST <= len(present) <= MOST


def test_a_schedule_is_drawn_from_its_seed_and_has_everything_in_it() -> None:
    drawn = schedule(240.0, 15.0, 1, NAMES)
    assert drawn == schedule(240.0, 15.0, 1, NAMES) != schedule(240.0, 15.0, 2, NAMES)
    assert {each.do for each in drawn} == {"join", "kill", "leave", "freeze"}
    assert [each.at for each in drawn] == sorted(each.at for each in drawn) and drawn[-1].at < 240.0


def step(t: float, number: int, samples: int = 12) -> dict[str, float]:
    return {"t": t, "step": number, "samples": samples}


def test_a_step_counts_once_however_often_it_is_done() -> None:
    logs = {"a": [step(9.0, 1), step(11.0, 2), step(12.0, 3)], "b": [step(11.1, 2), step(16.0, 3), step(30.0, 4)]}
    assert goodput(logs, 10.0, 10.0) == Goodput(2.4, 8.0)  # steps 2 and 3; nothing new from 12 to 20


def test_no_step_is_a_goodput_of_nothing() -> None:
    assert goodput({"a": []}, 10.0, 10.0) == Goodput(0.0, 10.0)


# --- what is told ------------------------------------------------------------------------------------------


def test_alarming_lines_come_before_those_that_tell_of_hosts() -> None:
    lines = ["quorum 3 of 3", "worker 7 failed", "worker 8 failed", "\x1b[31mtimeout\x1b[0m", "step 12"]
    assert telling(lines, 3) == ["worker 8 failed", "timeout"]
    assert telling(lines, 1) == ["timeout"]
    assert telling(["step 1", "h2 has left", "step 2"], 3) == ["h2 has left"]
    assert telling(["[INFO] no failures", "h2 has left"], 3) == ["h2 has left"]
    assert telling(["step 1", "step 2"], 3) == ["step 2"]


def test_bytes_are_those_that_the_loopback_device_sent() -> None:
    table = "Inter-| Receive | Transmit\n    lo: 11 2 0 0 0 0 0 0 99 2 0 0 0 0 0 0\n  eth0: 5 1 0 0 0 0 0 0 7 1\n"
    assert loopback_bytes(table) == 99


# --- what is asked for -------------------------------------------------------------------------------------


def test_links_are_read_or_refused() -> None:
    assert Links.parse("200mbit", "30ms") == Links("200mbit", 30.0)
    assert (str(Links.parse("loopback", "0ms")), str(Links("20mbit", 1.5))) == ("loopback", "20mbit, 1.5 ms one way")
    for rate, delay in (("loopback", "30ms"), ("200mbit", "soon")):
        with pytest.raises(ValueError, match="delay"):
            Links.parse(rate, delay)
    with pytest.raises(ChaosError, match="is no rate"):
        Links.parse("fast", "0ms")


def test_without_options_everything_is_measured() -> None:
    assert parse([]).work == list(DEFAULT)
    (one,) = parse(["--links", "20mbit", "--compute", "1", "--events", "join,kill"]).work
    assert (one.links, one.compute, one.events) == (Links("20mbit"), 1.0, ("join", "kill"))
    with pytest.raises(SystemExit):
        parse(["--events", "earthquake"])


def test_events_that_end_a_system_come_last() -> None:
    plan = Plan(events=("join", "kill", "coordinator", "churn"), rounds=2)
    assert plan.all() == ["join", "kill", "join", "kill", "coordinator", "churn"]


# --- results -----------------------------------------------------------------------------------------------


def results() -> Results:
    def seen(setting: Setting, event: str, failed: str = "", **values: list[float]) -> Observation:
        return Observation(setting, event, values, [f"h0: {event} | `{setting.system}`"], failed, 1)

    return Results(
        ["on a machine"],
        [
            seen(OURS, "steady", step=[0.2, 0.22], bytes_per_sample=[2e6]),
            seen(OURS, "join", join=[4.0], join_stall=[0.1]),
            seen(OURS, "join", join=[5.0], join_stall=[0.2]),
            seen(OURS, "kill", kill=[0.01]),
            seen(THEIRS, "steady", step=[0.21], bytes_per_sample=[2e6]),
            seen(THEIRS, "join", join=[2.9], join_stall=[0.4]),
            seen(THEIRS, "kill", failed="no further steps in 120 s"),
        ],
    )


def test_a_later_call_extends_the_file(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    assert read(path) == Results()
    write(path, results())
    found = read(path)
    assert found == results() and isinstance(found.observations[0].setting, Setting)


def test_a_cell_has_figures_failures_or_both() -> None:
    found = results()
    assert cell(found, OURS, MEASURES["join"]) == "4.50 (4.00 - 5.00)"
    assert cell(found, OURS, MEASURES["bytes_per_sample"]) == "2.0"
    assert cell(found, THEIRS, MEASURES["kill"]) == "no further steps in 120 s"
    assert cell(found, THEIRS, MEASURES["freeze"]) == "-"
    found.observations.append(Observation(THEIRS, "kill", {"kill": [3.0]}))
    assert cell(found, THEIRS, MEASURES["kill"]) == "3.00; no further steps in 120 s"


def test_the_page_says_where_chaos_is_behind_and_where_it_is_ahead() -> None:
    behind, ahead = verdicts(results(), [OURS, THEIRS], EVENTS)
    assert behind == "Chaos is behind the best of the others in: join (4.50; torchft, tight: 2.90).\n"
    assert ahead == (
        "Chaos is ahead of the best of the others in: stall at it (0.15; torchft, tight: 0.40); "
        "kill (0.01; torchft, tight: no further steps in 120 s).\n"
    )


def test_what_chaos_does_not_do_is_behind() -> None:
    found = results()
    found.observations = [o for o in found.observations if o.setting != OURS or o.event != "join"]
    assert not any("join" in line for line in verdicts(found, [OURS, THEIRS], EVENTS)), "it was not tried"
    found.observations.append(Observation(OURS, "join", failed="no steps with all in 120 s"))
    behind, *_ = verdicts(found, [OURS, THEIRS], EVENTS)
    assert "join (no steps with all in 120 s; torchft, tight: 2.90)" in behind


def test_a_step_that_came_early_is_no_better_than_one_in_time() -> None:
    found = results()
    found.observations.append(Observation(THEIRS, "kill", {"kill": [-1.6]}))
    assert not any("kill" in line for line in verdicts(found, [OURS, THEIRS], EVENTS))


def test_the_page_quotes_without_breaking_its_tables() -> None:
    shown = page(results(), "2026-11-21", "peers-2026-11-21.json")
    row = "| SIGKILL to a host | torchft, tight | no further steps in 120 s: `h0: kill / 'torchft'` |"
    assert row in shown.splitlines()
    assert "1. on a machine" in shown and "## Over loopback: 100 MB of parameters, next to no computing" in shown


def test_each_pace_of_churn_has_a_section_with_a_picture() -> None:
    found = Results(["on a machine"])
    for every, samples in ((15.0, 13.0), (5.0, 12.0)):
        setting = replace(OURS, compute=0.5, every=every)
        found.observations.append(Observation(setting, "churn", {"goodput": [samples]}))
    shown = page(found, "2026-11-22", "peers-2026-11-22.json")
    drawn = pictures(found, "peers-2026-11-22")
    assert [list(table.bars.values()) for table in drawn.values()] == [[12.0], [13.0]]
    assert all(f"({name})" in shown for name in drawn)
    assert "0.5 s of computing a step, an event every 5 s" in shown
    assert "### Events" not in shown and "### Churn" in shown, "nobody was tried with any"
