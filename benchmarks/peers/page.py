"""The page that says what was compared, what came of it, where Chaos is behind, and what each system told its user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.peers.results import Results, Setting, WorkKey
from benchmarks.report import Table, spread

CHAOS = "chaos, plain links"
"""What peers are compared with: they don't encrypt either."""


@dataclass(frozen=True)
class Measure:
    key: str
    event: str
    heading: str
    scale: float = 1.0
    digits: int = 2
    more_is_better: bool = False
    judged: bool = True
    """Whether Chaos can be behind in it."""


EVENTS = (
    Measure("step", "steady", "step of 3"),
    Measure("join", "join", "join"),
    Measure("join_stall", "join", "stall at it"),
    Measure("leave_stall", "leave", "stall at a leave"),
    Measure("kill", "kill", "kill"),
    Measure("rejoin", "rejoin", "back in"),
    Measure("freeze", "freeze", "freeze"),
    Measure("thaw", "thaw", "back after it"),
    Measure("coordinator", "coordinator", "coordinator killed"),
)
COSTS = (
    Measure("bytes_per_sample", "steady", "MB sent per sample", 1e-6, 1),
    Measure("processor", "steady", "processor s per step, 3 hosts"),
    Measure("own_processor", "steady", "of it outside the workers", judged=False),
    Measure("memory", "steady", "MB per host", 1e-6, 0),
    Measure("own_memory", "steady", "of it outside the worker", 1e-6, 0, judged=False),
)
CHURN = (
    Measure("goodput", "churn", "samples/s under churn", more_is_better=True),
    Measure("goodput_share", "churn", "of what 3 hosts do undisturbed", more_is_better=True, judged=False),
    Measure("gap", "churn", "longest without a step (s)", digits=1),
    Measure("restarts", "churn", "processes that ended and had to be started again", digits=0),
)
WORDS = {
    "steady": "nothing",
    "join": "a fourth host joins",
    "leave": "it leaves",
    "kill": "SIGKILL to a host",
    "rejoin": "it is started again",
    "freeze": "SIGSTOP to a host",
    "thaw": "SIGCONT",
    "coordinator": "SIGKILL to the coordinator",
    "churn": "churn",
}
QUOTED = 2
"""Lines of what was printed, per row."""
QUOTED_CHARACTERS = 160
ALIKE_S, ALIKE = 0.1, 0.1
"""Differences below both say nothing on a machine with other things to do."""

HEAD = """# Chaos beside others, {day}

Written by `make bench-peers`. The same model, the same events and the same links for all; each system is started by a
worker as short as its documentation's example. How each is used, what each column counts from and to, and what was done
to be fair: [peers/README.md](../peers/README.md). Every value, and more of what was printed: {values}.

Why to believe it: all times come from the workers' own logs, by one clock, in one format for all systems. No figure of
a table comes from elsewhere than the calls listed at its end. Why not to believe more: all hosts share the cores of one
machine; systems were measured one after another, some in different calls. `median (lowest - highest)`; what did not
happen is told in words; `-` was not tried, and columns that nobody was tried with are left out. Compared is Chaos
without encryption, as no other here encrypts.
"""


def page(results: Results, day: str, values: str) -> str:
    """All of it, as Markdown; `values`: the name of the file with everything."""
    parts = [HEAD.format(day=day, values=f"[{values}]({values})")]
    for work in results.works():
        parts.append(f"## {heading(work)}\n")
        settings = results.settings(work)
        for title, all_measures in (("Events (s)", EVENTS), ("What a step costs", COSTS), ("Churn", CHURN)):
            measures = [m for m in all_measures if any(results.of(s, m.event) for s in settings)]
            shown = [s for s in settings if any(results.of(s, m.event) for m in measures)]
            if shown:
                parts += [table(results, title, shown, measures).text(), *verdicts(results, shown, measures)]
                parts += [f"![{title}]({picture(work, Path(values).stem)})\n"] if all_measures is CHURN else []
        parts.append(said(results, settings).text())
    parts.append("## Measured on\n\n" + "\n".join(f"{n}. {call}" for n, call in enumerate(results.calls, 1)) + "\n")
    return "\n".join(parts)


def heading(work: WorkKey) -> str:
    """What the rows of a section have in common."""
    links, compute, millions, every = work
    pause = f"{compute:g} s of computing a step" if compute else "next to no computing"
    churn = f", an event every {every:g} s" if every else ""
    return f"Over {links}: {millions * 4} MB of parameters, {pause}{churn}"


def picture(work: WorkKey, stem: str) -> str:
    """The file with the goodput of such a section."""
    links, compute, millions, every = work
    return f"{stem}-churn-{links.replace(' ', '-')}-{compute:g}-{millions}-{every:g}.png"


def pictures(results: Results, stem: str) -> dict[str, Table]:
    """By file, the goodput of each section that has one."""
    found = {}
    for work in results.works():
        bars = {s.label: values[0] for s in results.settings(work) if (values := values_of(results, s, CHURN[0]))}
        if bars:
            found[picture(work, stem)] = Table(f"{CHURN[0].heading}. {heading(work)}", (), bars=bars)
    return found


def table(results: Results, title: str, settings: Sequence[Setting], measures: Sequence[Measure]) -> Table:
    found = Table(title, ("system", *(measure.heading for measure in measures)))
    for setting in settings:
        found.rows.append((setting.label, *(cell(results, setting, measure) for measure in measures)))
    return found


def values_of(results: Results, setting: Setting, measure: Measure) -> list[float]:
    return [value for o in results.of(setting, measure.event) for value in o.values.get(measure.key, [])]


def failures(results: Results, setting: Setting, measure: Measure) -> list[str]:
    return [o.failed for o in results.of(setting, measure.event) if o.failed]


def cell(results: Results, setting: Setting, measure: Measure) -> str:
    """A figure, a failure, or both."""
    values = values_of(results, setting, measure)
    shown = [spread(values, measure.scale, measure.digits)] if len(values) > 1 else []
    shown = [figure(values[0], measure)] if len(values) == 1 else shown
    failed = failures(results, setting, measure)
    many = f" ({len(failed)} times)" if len(failed) > 1 else ""
    return "; ".join([*shown, f"{plain(failed[-1])}{many}"] if failed else shown) or "-"


def verdicts(results: Results, settings: Sequence[Setting], measures: Sequence[Measure]) -> list[str]:
    """In which columns Chaos is behind the best of the others, and in which it is ahead, in a line each."""
    own = [setting for setting in settings if setting.label == CHAOS]
    others = [setting for setting in settings if not setting.system.startswith("chaos")]
    found: dict[str, list[str]] = {"behind": [], "ahead of": []}
    for measure in measures if own else ():
        theirs = {s.label: (values_of(results, s, measure), failures(results, s, measure)) for s in others}
        mine = values_of(results, own[0], measure), failures(results, own[0], measure)
        if measure.judged and (judged := verdict(mine, theirs, measure)):
            found[judged[0]].append(f"{measure.heading} ({judged[1]})")
    return [f"Chaos is {how} the best of the others in: {'; '.join(each)}.\n" for how, each in found.items() if each]


Seen = tuple[Sequence[float], Sequence[str]]
"""Values, and what did not happen."""


def verdict(mine: Seen, theirs: Mapping[str, Seen], measure: Measure) -> tuple[str, str] | None:
    """`behind` or `ahead of`, and the figures; None if they are alike or one side was not measured.

    What is below 0, as the next step came early, is as good as 0.
    """
    done = {label: median(values) for label, (values, _) in theirs.items() if values}
    undone = {label: failed[-1] for label, (_, failed) in theirs.items() if failed}
    if not (done or undone) or not any(mine):
        return None
    if not done:
        label, failed = next(iter(undone.items()))
        return ("ahead of", f"{figure(median(mine[0]), measure)}; {label}: {plain(failed)}") if mine[0] else None
    best = (max if measure.more_is_better else min)(done, key=lambda label: done[label])
    other = done[best]
    shown = f"{best}: {figure(other, measure)}"
    if not mine[0]:
        return "behind", f"{plain(mine[1][-1])}; {shown}"
    one = median(mine[0])
    if abs(max(one, 0.0) - max(other, 0.0)) <= max(ALIKE_S if measure.scale == 1 else 0.0, ALIKE * abs(other)):
        return None
    return "ahead of" if (one > other) == measure.more_is_better else "behind", f"{figure(one, measure)}; {shown}"


def figure(value: float, measure: Measure) -> str:
    return f"{value * measure.scale:.{measure.digits}f}"


def said(results: Results, settings: Sequence[Setting]) -> Table:
    """Per event and system, the latest of what it printed."""
    found = Table("What each told its user", ("what happened", "system", "what it printed"))
    for event, words in WORDS.items():
        for setting in settings:
            observed = results.of(setting, event)
            if not observed or (event == "steady" and not any(o.failed for o in observed)):
                continue
            told = next((o for o in reversed(observed) if o.failed), observed[-1])
            lines = " / ".join(f"`{plain(line)}`" for line in quoted(told.printed)) or "nothing"
            found.rows.append((words, setting.label, (f"{plain(told.failed)}: " if told.failed else "") + lines))
    return found


def quoted(lines: Sequence[str]) -> list[str]:
    """Of each process the last line, of as many as a table has room for."""
    last = {line.split(":", 1)[0]: line for line in lines}
    return [line[:QUOTED_CHARACTERS] for line in last.values()][:QUOTED]


def plain(text: str) -> str:
    """Without what would end a cell of a table, or a quotation in it."""
    return text.replace("|", "/").replace("`", "'").replace("\n", " ").strip()
