"""`chaos dashboard`: a page that shows a run, as one of its peers knows it or as its traces tell it."""

from __future__ import annotations

import os
import secrets
import sys
from importlib.util import find_spec

from chaos.core.errors import ChaosError
from chaos.observe.feed import Feed, Source

TOKEN = "CHAOS_DASHBOARD_TOKEN"
"""Environment variable: the token that the page asks for; drawn anew at each start where it is not set."""


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


def show(source: Source, listen: str) -> None:
    """Serve the page until a signal comes. Raises ChaosError."""
    for module in ("starlette", "uvicorn", "plotly", "prometheus_client"):
        need_extra(module, "dashboard")
    from chaos.observe.dashboard.guard import is_loopback
    from chaos.observe.dashboard.server import make_app, serve

    host, port = parse_listen(listen)
    token = os.environ.get(TOKEN, "") or ("" if is_loopback(host) else secrets.token_urlsafe(24))
    feed = Feed(source)

    def ready(bound: int) -> None:
        shown = f"[{host}]" if ":" in host else host
        link = f"http://{shown}:{bound}/" + (f"?token={token}" if token else "")
        print(f"chaos: dashboard at {link}", file=sys.stderr, flush=True)

    feed.start()
    try:
        serve(make_app(feed, host, token), host, port, ready)
    except OSError as error:
        raise ChaosError(f"the dashboard cannot listen at {listen}: {error.strerror}; choose another port") from error
    finally:
        feed.stop()
