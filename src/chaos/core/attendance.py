"""Which parties had a member in the run, and which of them have none any more: nobody is missed silently."""

from __future__ import annotations

from chaos.core.types import View

MAX_PARTIES = 1024
"""As many as a view has seats."""


class Attendance:
    """As far as this peer has seen, from the first view that it installed."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        """Each party, and one of its members."""
        self._present: tuple[str, ...] = ()

    def installed(self, view: View) -> None:
        self._present = tuple(dict.fromkeys(m.party for m in view.members))
        for member in view.members:
            if len(self._names) < MAX_PARTIES or member.party in self._names:
                self._names[member.party] = member.name

    def missing(self) -> dict[str, str]:
        """Parties that had a member once and have none now, each with the name of one that it had."""
        return {party: name for party, name in self._names.items() if party not in self._present}

    def summary(self) -> str:
        """'' if nobody is missing."""
        missing = self.missing()
        if not missing:
            return ""
        gone = ", ".join(f"{party[:8]} ({name})" for party, name in missing.items())
        return f"{len(self._names) - len(missing)} of {len(self._names)} parties are still there; without {gone}"
