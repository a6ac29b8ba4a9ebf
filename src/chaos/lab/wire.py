"""The network of a lab: starts `wire.c`, which makes the namespaces and carries their packets, and steers it."""

from __future__ import annotations

import hashlib
import json
import os
import selectors
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

from chaos.core.errors import ChaosError
from chaos.lab.carrier import MAX_HOSTS, PORT, Quality, Traffic

SOURCE = Path(__file__).with_name("wire.c")
PATIENCE_S = 10.0
"""Making 64 namespaces takes a tenth of it."""


class Wire:
    """Namespaces 0 to `hosts` - 1 and all links among them, which are down at first. Nothing is left after the block.

    Raises ChaosError: no compiler, no right to make namespaces, or no TUN device.
    """

    def __init__(self, hosts: int, mtu: int = 1500, seed: int = 0) -> None:
        if not 1 <= hosts <= MAX_HOSTS:
            raise ChaosError(f"a lab has 1 to {MAX_HOSTS} hosts, not {hosts}")
        self._process = subprocess.Popen(
            [str(program()), str(hosts), str(mtu), str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for whoever steers it
        )
        self._selector = selectors.DefaultSelector()
        assert self._process.stdout is not None
        self._selector.register(self._process.stdout, selectors.EVENT_READ)
        try:
            self._keepers: list[int] = json.loads(self._line())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Wire:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        """End it: the kernel removes what nobody uses any more."""
        self._process.kill()
        self._process.wait()
        self._selector.close()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()

    def enter(self, host: int) -> list[str]:
        """What a command begins with that is to run on this host."""
        return ["nsenter", f"--net=/proc/{self._keepers[host]}/ns/net", "--"]

    def listen_at(self, host: int) -> str:
        return f"{address(host)}:{PORT}"

    reached_at = listen_at

    def set_direction(self, sender: int, receiver: int, quality: Quality | None) -> None:
        """From now on. None: nothing arrives, and nobody is told."""
        q = quality or Quality()
        delay, jitter, queue = (int(value * 1000) for value in (q.latency_ms, q.jitter_ms, q.queue_ms))
        up, loss = int(quality is not None), int(q.loss * 1e6)
        self._say(f"link {sender} {receiver} {up} {q.rate:.0f} {delay} {jitter} {loss} {queue}")

    def set_access(self, host: int, up: float, down: float, queue_ms: float = 100.0) -> None:
        """What all links of a host share, in bits per second; 0: no limit."""
        self._say(f"host {host} {up:.0f} {down:.0f} {int(queue_ms * 1000)}")

    def traffic(self) -> tuple[dict[tuple[int, int], Traffic], float]:
        """By sender and receiver; and how late, in seconds, the latest packet since the last call was delivered."""
        self._say("stats")
        said = json.loads(self._line())
        found = {(row[0], row[1]): Traffic(*row[2:]) for row in said["directions"]}
        return found, said["late_us"] / 1e6

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise ChaosError("the lab's wire has ended; was it killed?") from error

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline() if self._selector.select(PATIENCE_S) else ""
        if not line:
            self._process.kill()
            assert self._process.stderr is not None
            said = self._process.stderr.read().strip() or "it says nothing"
            raise ChaosError(f"the lab's network can't be made ({said}); it needs root or a user namespace, and TUN")
        return line


def program() -> Path:
    """The compiled wire; it is compiled at its first use. Raises ChaosError: there is no C compiler."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chaos"
    target = cache / f"wire-{digest}"
    if target.exists():
        return target
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise ChaosError("the lab's wire has to be compiled once and there is no C compiler; install gcc or clang")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        made = Path(folder) / "wire"
        done = subprocess.run([compiler, "-O2", "-o", made, SOURCE], capture_output=True, text=True, check=False)
        if done.returncode:
            raise ChaosError(f"{compiler} could not compile the lab's wire: {done.stderr.strip()[:300]}")
        made.rename(target)
    return target


def missing() -> str | None:
    """Why there can be no lab here; None: there can."""
    if os.geteuid() != 0:
        return "it needs root, or a user namespace"
    if shutil.which("nsenter") is None:
        return "there is no command nsenter; install util-linux"
    try:
        with Wire(1):
            return None
    except ChaosError as error:
        return str(error)


def address(host: int) -> str:
    """Its IPv4 address."""
    return f"10.77.0.{host + 1}"
