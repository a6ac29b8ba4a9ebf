"""The page, its data and the metrics, over HTTP."""

from __future__ import annotations

import socket
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import msgspec
import plotly
import uvicorn
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from chaos.observe.dashboard.guard import Guard
from chaos.observe.feed import Feed
from chaos.observe.metrics import PictureCollector
from chaos.observe.picture import Picture

PAGE = Path(str(files("chaos.observe.dashboard") / "page"))
PLOTLY = Path(plotly.__file__).with_name("package_data") / "plotly.min.js"
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}


class PageData:
    """The picture as JSON, made once for all who look."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._made: tuple[int, bytes] | None = None

    def read(self) -> tuple[str, bytes]:
        """ETag and body."""
        version = self._feed.version
        if self._made is None or self._made[0] != version:
            self._made = version, self._feed.show(_encode)
        return f'"{self._made[0]}"', self._made[1]


def _encode(picture: Picture, trouble: str) -> bytes:
    return msgspec.json.encode({"picture": picture.as_json() | {"standing": picture.standing()}, "trouble": trouble})


def make_app(feed: Feed, host: str, token: str = "") -> Starlette:
    """The whole server. `host` is where it listens; see `Guard` for the token."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(PictureCollector(feed))
    page = PageData(feed)

    def asset(path: Path, cache: str = "no-cache") -> Callable[[Request], Response]:
        content, kind = path.read_bytes(), _TYPES[path.suffix]
        return lambda _: Response(content, media_type=kind, headers={"Cache-Control": cache})

    def data(request: Request) -> Response:
        tag, body = page.read()
        if request.headers.get("if-none-match") in (tag, f"W/{tag}"):
            return Response(status_code=304)
        return Response(body, media_type="application/json", headers={"ETag": tag, "Cache-Control": "no-store"})

    def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"Content-Type": content_type})

    routes = [
        Route("/", asset(PAGE / "index.html")),
        Route("/app.js", asset(PAGE / "app.js")),
        Route("/style.css", asset(PAGE / "style.css")),
        Route("/plotly.min.js", asset(PLOTLY, "max-age=86400")),
        Route("/picture.json", data),
        Route("/metrics", metrics),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, host=host, token=token), Middleware(GZipMiddleware, minimum_size=2000)],
    )


def serve(app: Starlette, host: str, port: int, on_ready: Callable[[int], None]) -> None:
    """Until SIGINT or SIGTERM. `on_ready` is told the port. Raises OSError if it can't listen there."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.create_server(address[:2], family=family) as listening:
        on_ready(int(listening.getsockname()[1]))
        config = uvicorn.Config(app, log_level="error", access_log=False, lifespan="off")
        uvicorn.Server(config).run(sockets=[listening])
