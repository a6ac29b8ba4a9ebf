"""The command `chaos`. Each verb reads its options here and hands over; torch is never imported in this process."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from chaos.cli import lab as lab_verbs
from chaos.cli import party as party_verbs
from chaos.cli import plan as plan_verbs
from chaos.core.errors import ChaosError

EXIT_CODES = (
    "Exit codes: 0 done; 1 an error that standard error explains in one line; 2 wrong options; 3 the agent ended; "
    "4 the run declined this peer; 5 no holder of the training state is left; 6 the run ended before this peer "
    "had caught up; 7 nobody could confirm this peer's last step; 70 a fault in the agent; "
    "128 + n ended by signal n."
)

app = typer.Typer(
    help="Train one PyTorch model together, on machines that come and go, with nobody in charge.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(party_verbs.app, name="party")
app.add_typer(plan_verbs.app, name="plan")
app.add_typer(lab_verbs.app, name="lab")

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
PartyDirectory = Annotated[
    Path | None, typer.Option("--party", metavar="DIR", help="This party's directory. Default: ~/.config/chaos/party.")
]
Straggler = Annotated[
    str | None, typer.Option(metavar="wait|skip", help="Founder: wait for late workers (default), or leave them out.")
]
StragglerLimit = Annotated[
    float | None, typer.Option(metavar="SECONDS", help="With skip: wait no longer than that. Default: 30.")
]
Record = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Record all events of this agent, for `chaos sim --replay`.")
]
Plain = Annotated[bool, typer.Option("--plain", help="For runs with --plain: no TLS.")]
Dashboard = Annotated[
    str | None, typer.Option("--dashboard", metavar="HOST:PORT", help="Show the run there, as a page for a browser.")
]
Address = Annotated[
    str | None,
    typer.Argument(metavar="[HOST:PORT]", help="A peer. Default: $CHAOS_ADDRESS, else yours on this host."),
]


@app.command(epilog=EXIT_CODES)
def demo(
    peers: Annotated[int, typer.Option(help="Peers at the beginning; one more joins.")] = 4,
    steps: Annotated[int, typer.Option(help="Updates until the end.")] = 180,
    seed: Annotated[int, typer.Option(help="Of the initial weights and the samples' order.")] = 0,
    dashboard: Dashboard = None,
    as_json: AsJson = False,
) -> None:
    """Train a small GPT with several peers on this machine; one joins, one is killed, one leaves."""
    from chaos.cli.demo import run_demo  # each verb loads what it needs, so that the others start at once

    run_demo(peers, steps, seed, as_json, dashboard)


@app.command(
    context_settings={"allow_interspersed_args": False},
    epilog=EXIT_CODES,
    options_metavar="[OPTIONS]",
)
def run(
    script: Annotated[Path, typer.Argument(help="A training script that uses chaos.Session.")],
    args: Annotated[list[str] | None, typer.Argument(help="Handed to the script as they are.")] = None,
    join: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST:PORT", help="Any member of the run; may be repeated. Without it: found a run."),
    ] = None,
    listen: Annotated[
        list[str] | None, typer.Option(metavar="HOST:PORT", help="Where to listen; may be repeated. Default: any port.")
    ] = None,
    advertise: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST:PORT", help="How others reach this peer; may be repeated. Default: all interfaces."),
    ] = None,
    party: PartyDirectory = None,
    name: Annotated[str | None, typer.Option(help="This peer's name. Default: this host's.")] = None,
    min_peers: Annotated[int | None, typer.Option(help="Founder: so many members before the first step.")] = None,
    straggler: Straggler = None,
    straggler_limit: StragglerLimit = None,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write checkpoints there; resume from the newest one.")
    ] = None,
    checkpoint_every: Annotated[int | None, typer.Option(metavar="N", help="Steps between checkpoints.")] = None,
    spill: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Results that wait for joiners may go to disk there: /var/tmp.")
    ] = None,
    spill_gb: Annotated[float | None, typer.Option(metavar="GB", help="As much at most: 8.6. 0: none.")] = None,
    trace: Annotated[Path | None, typer.Option(metavar="FILE", help="Append a trace as JSON lines.")] = None,
    record: Record = None,
    dashboard: Dashboard = None,
    max_restarts: Annotated[int | None, typer.Option(metavar="N", help="Restarts of a worker that dies.")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="No TLS. For comparisons on one machine only.")] = False,
) -> None:
    """Train with others: found a run, or join one with --join.

    Every option can also be set as CHAOS_... in the environment, or in the table 'run' of ./chaos.toml.
    """
    from chaos.agent.launcher import launch
    from chaos.agent.settings import RunSettings

    settings = RunSettings.resolve(
        script=script,
        args=tuple(args or ()),
        join=tuple(join or ()),
        listen=tuple(listen or ()),
        advertise=tuple(advertise or ()),
        party=party,
        name=name,
        min_peers=min_peers,
        straggler=straggler,
        straggler_limit=straggler_limit,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        spill=spill,
        spill_gb=spill_gb,
        trace=trace,
        record=record,
        dashboard=dashboard,
        max_restarts=max_restarts,
        plain=plain or None,
    )
    if settings.dashboard is not None:
        from chaos.cli.dashboard import check

        check(settings.dashboard)
    raise typer.Exit(launch(settings))


@app.command(epilog=EXIT_CODES)
def status(
    address: Address = None, party: PartyDirectory = None, plain: Plain = False, as_json: AsJson = False
) -> None:
    """Show a run as one of its peers knows it: view, members, steps, links."""
    from chaos.agent.client import request_status
    from chaos.cli.status import ask_address, picture

    answer = request_status(ask_address(address, alone=False), party, plain)
    if as_json:
        print(json.dumps(answer))
    else:
        Console().print(picture(answer))


@app.command(epilog=EXIT_CODES)
def doctor(
    join: Annotated[
        list[str] | None, typer.Option(metavar="HOST:PORT", help="A member of the run that this host is to join.")
    ] = None,
    listen: Annotated[
        list[str] | None, typer.Option(metavar="HOST:PORT", help="As for `run`: members are asked to dial it.")
    ] = None,
    advertise: Annotated[list[str] | None, typer.Option(metavar="HOST:PORT", help="As for `run`.")] = None,
    party: PartyDirectory = None,
    checkpoint: Annotated[Path | None, typer.Option(metavar="DIR", help="Look at the space there.")] = None,
    plain: Plain = False,
    as_json: AsJson = False,
) -> None:
    """Look for what would keep this host from taking part, without taking part. Exit code 1 if there is a problem."""
    from chaos.agent.settings import RunSettings
    from chaos.cli.doctor import Question, show

    settings = RunSettings.resolve(
        join=tuple(join or ()),
        listen=tuple(listen or ()),
        advertise=tuple(advertise or ()),
        party=party,
        checkpoint=checkpoint,
        plain=plain or None,
    )
    raise typer.Exit(show(Question(*(getattr(settings, name) for name in Question._fields)), as_json))


@app.command(epilog=EXIT_CODES)
def events(
    source: Annotated[
        list[str] | None,
        typer.Argument(metavar="[HOST:PORT|DIR|FILE]...", help="A peer, or trace files. Default: as `status`."),
    ] = None,
    following: Annotated[bool, typer.Option("--follow", help="Go on with what comes.")] = False,
    peer: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only of, or about, this peer.")] = None,
    kind: Annotated[
        list[str] | None, typer.Option(metavar="KIND", help="Only of this kind; see docs/trace.md.")
    ] = None,
    party: PartyDirectory = None,
    plain: Plain = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
) -> None:
    """Show what happened at all peers, causes before effects: from any one peer's memory, or from trace files."""
    from chaos.cli.events import show_events, source_of

    show_events(source_of(source or [], party, plain), following, set(peer or ()), set(kind or ()), as_json)


@app.command(epilog=EXIT_CODES)
def dashboard(
    source: Annotated[
        list[str] | None,
        typer.Argument(metavar="[HOST:PORT|DIR|FILE]...", help="A peer, or trace files. Default: as `status`."),
    ] = None,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where the page is. Anywhere but on loopback it wants a token.")
    ] = "127.0.0.1:8800",
    party: PartyDirectory = None,
    plain: Plain = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the page's address as one JSON object first.")] = False,
) -> None:
    """Serve a page that shows a run live, and /metrics for Prometheus. It is no member, and only looks."""
    from chaos.cli.dashboard import show
    from chaos.cli.events import source_of

    show(source_of(source or [], party, plain), listen, as_json)


@app.command(epilog=EXIT_CODES)
def top(
    source: Annotated[
        list[str] | None,
        typer.Argument(metavar="[HOST:PORT|DIR|FILE]...", help="A peer, or trace files. Default: as `status`."),
    ] = None,
    party: PartyDirectory = None,
    plain: Plain = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the picture once, as one JSON object.")] = False,
) -> None:
    """Watch a run in the terminal, as one of its peers knows it: peers, links, events as they happen."""
    from chaos.cli.events import source_of
    from chaos.cli.top import watch

    watch(source_of(source or [], party, plain), as_json)


@app.command(epilog=EXIT_CODES)
def report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where the traces (*.jsonl) are; below it too.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to write. Default: DIR/report.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write one HTML page, and its pictures, about the run that left these traces."""
    from chaos.cli.report import report_on

    report_on(directory, out, as_json)


@app.command(epilog=EXIT_CODES)
def leave(address: Address = None, party: PartyDirectory = None, plain: Plain = False, as_json: AsJson = False) -> None:
    """Ask one of your own peers to finish its step and leave the run."""
    from chaos.agent.client import request_leave
    from chaos.cli.status import ask_address

    name = request_leave(ask_address(address, alone=True), party, plain)
    if as_json:
        print(json.dumps({"leaving": name}))
    else:
        print(f"{name} leaves after its present step")


class Way(StrEnum):
    """What to do with a link."""

    connect = "connect"
    disconnect = "disconnect"


@app.command(epilog=EXIT_CODES)
def link(
    what: Annotated[Way, typer.Argument(help="Cut the link, or make it again.")],
    peer: Annotated[str, typer.Argument(help="Name or id of the other end.")],
    address: Address = None,
    party: PartyDirectory = None,
    plain: Plain = False,
    as_json: AsJson = False,
) -> None:
    """Cut the link between one of your own peers and another one, or make it again.

    The run agrees on it between two steps; what the two send each other then takes the way over others.
    """
    from chaos.agent.client import request_link
    from chaos.cli.status import ask_address

    answer = request_link(ask_address(address, alone=True), peer, what is Way.connect, party, plain)
    if as_json:
        print(json.dumps(answer))
    else:
        done = "make a link again" if what is Way.connect else "have no link any more"
        print(f"{answer['peer']} and {answer['other']} {done}, by view {answer['view']}")


@app.command(epilog=EXIT_CODES)
def sim(
    scenario: Annotated[Path | None, typer.Option(metavar="FILE", help="What is to happen, as a TOML file.")] = None,
    random: Annotated[bool, typer.Option("--random", help="Random faults, drawn from each seed.")] = False,
    peers: Annotated[
        str | None,
        typer.Option(metavar="N|A..B", help="Peers at the beginning of random runs: so many, or drawn. Default: 2..5."),
    ] = None,
    seeds: Annotated[str, typer.Option(metavar="A..B", help="One run for each.")] = "0..99",
    recording: Annotated[
        Path | None, typer.Option("--replay", metavar="FILE", help="Run an agent again that wrote this (--record).")
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps that have to become stable in each run, at least.")] = 0,
    jobs: Annotated[int, typer.Option(help="Processes that share the seeds; 0: one for each core.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Run the agents' protocol in virtual time, with faults, and check its promises at every event."""
    from chaos.cli.sim import run_again, simulate

    if sum((random, scenario is not None, recording is not None)) != 1:
        raise ChaosError("give one of --random, --scenario FILE and --replay FILE")
    if recording is not None:
        raise typer.Exit(run_again(recording, as_json))
    raise typer.Exit(simulate(scenario, peers, seeds, steps, jobs, as_json))


@app.command("force-view", epilog=EXIT_CODES)
def force_view(
    address: Address = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it without asking.")] = False,
    party: PartyDirectory = None,
    plain: Plain = False,
    as_json: AsJson = False,
) -> None:
    """Have a paused run go on without those that are gone for good. Ask one of your own peers that is paused."""
    from chaos.agent.client import preview_force, request_force
    from chaos.cli.force import confirm
    from chaos.cli.status import ask_address

    where = ask_address(address, alone=True)
    shown = preview_force(where, party, plain)
    confirm(shown, where, yes, Console(stderr=as_json))
    lineage = request_force(where, int(shown["view"]), party, plain)
    if as_json:
        print(json.dumps(shown | {"old_lineage": shown["lineage"], "lineage": lineage}))
    else:
        print(f"the run goes on as lineage {lineage}, with {', '.join(shown['members'])}")


def main() -> None:
    """Entry point of the command `chaos`."""
    try:
        app()
    except ChaosError as error:
        print(f"chaos: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
