"""What `chaos run` was told: arguments before environment before ./chaos.toml before defaults."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from chaos.agent.shared_memory import DISK_BYTES
from chaos.core.errors import ChaosError

CONFIG_FILE = Path("chaos.toml")
LIMIT_S = 30.0
"""Seconds that a late worker may hold the others up where it is to be left out. A guess, as that for a learner."""
MAX_LIMIT_S = 86400.0
MAX_SPILL_GB = 1e6
SPILL = Path("/var/tmp")
"""A host that lacks it keeps no results on disk, and says so in its trace."""
LISTS = ("join", "listen", "advertise")


class RunSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One peer's settings. Also what the launcher hands to its agent, as JSON."""

    script: Path | None = None
    """None: a Session outside `chaos run` started this agent."""
    args: tuple[str, ...] = ()
    join: tuple[str, ...] = ()
    """HOST:PORT of members; empty founds a run."""
    listen: tuple[str, ...] = ("0.0.0.0:0",)
    """Port 0 takes any free port: two peers on one host need no configuration."""
    advertise: tuple[str, ...] = ()
    """Empty: the addresses of this host's interfaces, with the port that was bound."""
    party: Path | None = None
    """None: the user's own, ~/.config/chaos/party, made at first use."""
    name: str | None = None
    """None: the host's name, with a number behind it where that is taken on this host."""
    min_peers: int = 1
    straggler: Literal["wait", "skip"] | None = None
    """What the founder sets for the run. None: the run's; 'wait' for a founder."""
    straggler_limit: float | None = None
    """Seconds. Only with straggler 'skip'."""
    checkpoint: Path | None = None
    checkpoint_every: int = 100
    """Steps. Only with `checkpoint`."""
    spill: Path = SPILL
    """Where results lie that wait for learners, in a file without a name. By the file system's standard this directory
    is on disk and for large files; /tmp and the runtime directory may be memory."""
    spill_gb: float = DISK_BYTES / 1e9
    """What they take there at most, in GB of 10^9 bytes; 0: none go to disk."""
    trace: Path | None = None
    record: Path | None = None
    """All events of this agent, to be run again by `chaos sim --replay`. For whoever looks for a fault."""
    dashboard: str | None = None
    """HOST:PORT of a page that shows the run; a process of its own, started by the launcher."""
    max_restarts: int = 3
    """Per launcher, of worker and agent together. A guess: more than that is no accident."""
    plain: bool = False
    """No TLS. For comparisons on one machine."""

    def check(self) -> None:
        """Raises ChaosError naming the setting that makes no sense."""
        if self.min_peers < 1:
            raise ChaosError(f"--min-peers is {self.min_peers}; give 1 or more")
        if self.min_peers > 1 and self.join:
            raise ChaosError("--min-peers belongs to the peer that founds the run; leave it out with --join")
        if self.straggler_limit is not None and self.straggler != "skip":
            raise ChaosError("--straggler-limit belongs to --straggler skip")
        if self.straggler_limit is not None and not 0 < self.straggler_limit <= MAX_LIMIT_S:
            raise ChaosError(f"--straggler-limit is {self.straggler_limit:g}; give seconds, above 0 and up to 86400")
        if self.checkpoint_every < 1:
            raise ChaosError(f"--checkpoint-every is {self.checkpoint_every}; give 1 or more steps")
        if not 0 <= self.spill_gb <= MAX_SPILL_GB:
            raise ChaosError(f"--spill-gb is {self.spill_gb:g}; give 0 (nothing on disk) to {MAX_SPILL_GB:g}")
        if self.spill_gb and self.spill != SPILL and not self.spill.is_dir():
            raise ChaosError(f"--spill: there is no directory {self.spill}; make it, or give --spill-gb 0")
        if self.max_restarts < 0:
            raise ChaosError(f"--max-restarts is {self.max_restarts}; give 0 or more")
        if self.script is not None and not self.script.is_file():
            raise ChaosError(f"there is no script {self.script}; check its path")

    @property
    def straggler_limit_s(self) -> float | None:
        """As `NodeConfig` has it."""
        if self.straggler is None:
            return None
        return (self.straggler_limit or LIMIT_S) if self.straggler == "skip" else 0.0

    @classmethod
    def resolve(cls, environment: Mapping[str, str] | None = None, **given: Any) -> RunSettings:
        """Merge what was given on the command line (None or empty: not given) with the other sources.

        Raises:
            ChaosError: a value makes no sense, or the file is no TOML.
        """
        known = {f.name for f in msgspec.structs.fields(cls)} - {"script", "args"}
        merged: dict[str, Any] = _from_file(known)
        merged.update(_from_environment(os.environ if environment is None else environment, known))
        merged.update({key: value for key, value in given.items() if value not in (None, (), [])})
        for key in LISTS:
            if isinstance(merged.get(key), list):
                merged[key] = tuple(merged[key])
        for key in ("party", "checkpoint", "spill", "trace", "record", "script"):
            if isinstance(merged.get(key), str):
                merged[key] = Path(merged[key])
        try:
            settings = msgspec.convert(merged, cls, strict=False)
        except msgspec.ValidationError as error:
            raise ChaosError(f"a setting does not fit: {error}") from error
        settings.check()
        return settings


def _from_environment(environment: Mapping[str, str], known: set[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in known:
        value = environment.get(f"CHAOS_{key.upper()}")
        if value:
            found[key] = tuple(part.strip() for part in value.split(",")) if key in LISTS else value
    return found


def _from_file(known: set[str]) -> dict[str, Any]:
    if not CONFIG_FILE.is_file():
        return {}
    try:
        content = tomllib.loads(CONFIG_FILE.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ChaosError(f"{CONFIG_FILE} is no TOML: {error}") from error
    values: dict[str, Any] = content.get("run", {})
    for key in values:
        if key.replace("-", "_") not in known:
            raise ChaosError(f"{CONFIG_FILE}: [run] has no setting '{key}'; known are {', '.join(sorted(known))}")
    return {key.replace("-", "_"): value for key, value in values.items()}
