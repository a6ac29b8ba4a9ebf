"""`chaos top`: starts the terminal view, or prints the picture once."""

from __future__ import annotations

import json
import sys

from chaos.cli.dashboard import need_extra
from chaos.core.errors import ChaosError
from chaos.observe.feed import Feed, Source


def watch(source: Source, as_json: bool) -> None:
    """Until the user quits. Raises ChaosError where there is nothing to see, or no terminal."""
    feed = Feed(source)
    feed.look()
    trouble = feed.show(lambda _, trouble: trouble)
    if trouble:
        raise ChaosError(trouble)
    if as_json:
        print(json.dumps(feed.show(lambda picture, _: picture.as_json() | {"standing": picture.standing()})))
        return
    need_extra("textual", "top")
    if not sys.stdout.isatty():
        raise ChaosError("chaos top needs a terminal; --json prints the picture, `chaos events` lines")
    from chaos.observe.top import Top

    feed.start()
    try:
        Top(feed).run()
    finally:
        feed.stop()
