"""`chaos party`: makes this party, shows what others need to admit it, and admits others."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Annotated, Any

import typer

from chaos.agent.identity import Root
from chaos.agent.party import Party, default_directory, read_file

app = typer.Typer(help="This party's own certificate authority, and the parties it admits.", no_args_is_help=True)

Directory = Annotated[Path | None, typer.Option("--dir", help="Where the party lies. Default: ~/.config/chaos/party.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def init(
    name: Annotated[str | None, typer.Option(help="Name for people to read. Default: this host's.")] = None,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Make a new party: a key that stays here, and the root certificate that others get."""
    party = Party.init(directory or default_directory(), name or _host_name())
    _print(_described(party), as_json)


@app.command()
def show(directory: Directory = None, as_json: AsJson = False) -> None:
    """Show this party's fingerprint, the file to hand to others, and the parties it admits."""
    _print(_described(Party.open(directory or default_directory())), as_json)


@app.command()
def admit(
    file: Annotated[Path, typer.Argument(help="The other party's ca.pem.")],
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Admit another party. Compare the printed fingerprint with what its people tell you."""
    party = Party.open(directory or default_directory())
    fingerprint = party.admit(read_file(file), source=str(file))
    admitted = next(root for root in party.admitted() if root.fingerprint == fingerprint)
    if as_json:
        print(json.dumps(_root_values(admitted, party.admitted_file(fingerprint))))
    else:
        print(f"admitted {admitted.name}, party {fingerprint}")


def _host_name() -> str:
    """This host's name without what a party's name can't hold."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).lstrip("._-")[:64] or "party"


def _root_values(root: Root, file: Path) -> dict[str, Any]:
    return {
        "fingerprint": root.fingerprint,
        "name": root.name,
        "expires": root.expires.isoformat(),
        "file": str(file),
    }


def _described(party: Party) -> dict[str, Any]:
    admitted = [_root_values(root, party.admitted_file(root.fingerprint)) for root in party.admitted()]
    return {**_root_values(party.root, party.root_file), "admitted": admitted}


def _print(party: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(party))
        return
    print(f"party        {party['name']}")
    print(f"fingerprint  {party['fingerprint']}")
    print(f"expires      {party['expires'][:10]}")
    print(f"hand out     {party['file']}")
    if not party["admitted"]:
        print("admitted     nobody; `chaos party admit FILE` admits a party")
    for other in party["admitted"]:
        print(f"admitted     {other['fingerprint']}  {other['name']}, expires {other['expires'][:10]}")
