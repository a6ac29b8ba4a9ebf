"""`chaos dashboard`: a page that shows a run, as one of its peers knows it or as its traces tell it."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from chaos.core.errors import ChaosError
from chaos.observe.feed import Feed, Source

TOKEN = "CHAOS_DASHBOARD_TOKEN"
"""Environment variable: the token that the page asks for; drawn anew at each start where it is not set."""
SPARE = "CHAOS_DASHBOARD_SPARE_TOKEN"
"""The same, for a page that needs one; from a launcher."""
SAYS = "chaos: dashboard at "
READY_S = 20.0
"""How long a page may take to listen."""


def parse_listen(text: str) -> tuple[str, int]:
    """HOST:PORT, or [ADDRESS]:PORT. Raises ChaosError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ChaosError(f"'{text}' is no address for the dashboard; give HOST:PORT, as 127.0.0.1:8800")
    return host.strip("[]"), int(port)


def need_extra(module: str, extra: str) -> None:
    """Raises ChaosError where the optional libraries are not installed."""
    if find_spec(module) is None:
        raise ChaosError(f"this needs more libraries: pip install 'chaos-train[{extra}]'")


def check(listen: str) -> None:
    """Raises ChaosError if no page could be shown there, before anything else is started."""
    parse_listen(listen)
    for module in ("starlette", "uvicorn", "plotly", "prometheus_client"):
        need_extra(module, "dashboard")


@contextmanager
def page(directory: Path, listen: str, environment: Mapping[str, str]) -> Iterator[str]:
    """A page of its own process that shows the traces in a directory, until the block's end. Yields its address."""
    command = [sys.executable, "-m", "chaos.cli.main", "dashboard", str(directory), "--listen", listen]
    log = directory / "dashboard.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=output, env=dict(environment))
    try:
        deadline = time.monotonic() + READY_S
        while SAYS not in (said := log.read_text(errors="replace")):
            if process.poll() is not None or time.monotonic() > deadline:
                raise ChaosError(said.strip().removeprefix("chaos: error: ") or f"no page at {listen}")
            time.sleep(0.05)
        yield said.partition(SAYS)[2].split()[0]
    finally:
        process.kill()
        process.wait()


def show(source: Source, listen: str, as_json: bool = False) -> None:
    """Serve the page until a signal comes; first say where it is. Raises ChaosError."""
    check(listen)
    from chaos.observe.dashboard.guard import is_loopback
    from chaos.observe.dashboard.server import make_app, serve

    host, port = parse_listen(listen)
    token = os.environ.get(TOKEN, "")
    if not token and not is_loopback(host):
        token = os.environ.get(SPARE) or secrets.token_urlsafe(24)
    feed = Feed(source)

    def ready(bound: int) -> None:
        shown = f"[{host}]" if ":" in host else host
        link = f"http://{shown}:{bound}/" + (f"?token={token}" if token else "")
        if as_json:
            print(json.dumps({"dashboard": link}), flush=True)
        else:
            print(f"{SAYS}{link}", file=sys.stderr, flush=True)

    feed.start()
    try:
        serve(make_app(feed, host, token), host, port, ready)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ChaosError(f"the dashboard cannot listen at {listen}: {reason}; choose another port") from error
    finally:
        feed.stop()
