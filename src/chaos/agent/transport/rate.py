"""How fast a link delivers bulk, and how fast to send because of it. Pure: times come in as numbers.

The receiver counts bytes over the time in which frames were under way (`BusyMeter`) and reports totals. The sender
takes the highest of its last samples for the link's rate, and paces at a little less, so that the network's
queues stay empty. Regularly it tries a quarter more, and then lets the queue drain that this may have built.
"""

from __future__ import annotations

from collections import deque

SAMPLE_S = 0.25
"""Busy time that one sample covers: some round trips, and many scheduling hiccups of 5 ms."""
WINDOW = 10
"""Samples of which the highest counts: one more cycle of gains would let a link that got slower wait too long."""
GAINS = (1.15, 0.85, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
"""One sample each: try more, drain what that has queued, cruise; the mean is 1. A cycle like BBR's (Cardwell et al.,
2016), but gentler: its 1.25 leaves 47 ms of queue at the end of the sample, in which control waits."""
FAST_GAIN = 1.3
"""For the next sample, when trying more has brought more; repeated while it does: twice the rate in a second."""
GROWN = 1.05
"""A sample so much above the rate is a link with more room, and not noise."""
SHARE = 0.95
"""Of the rate; leaves room for control and for acknowledgements (measured: 190 of 191 Mbit/s went through)."""
RAMP_ROUND_TRIPS = 6
"""After a rest TCP begins with 10 packets and doubles them each round trip; six give it 1 MB. What came meanwhile tells
about TCP and not about the link: with 40 ms, bursts of 0.2 s were paced down to a third of what they reach."""
GAP_S = 0.03
"""A shorter rest between frames is none: the sender's next frame was late, but TCP has not begun anew."""
FAST_ENOUGH = 250e6
"""Bytes per second above which nothing is paced: a queue of 256 KB is gone in a millisecond."""


class BusyMeter:
    """Receiver's side: bytes that came while at least one frame was incomplete, and for how long that was so.

    Bytes of the read that starts a busy time do not count: they arrived before it. Nor does what comes within
    `ramp_s` after a rest.
    """

    def __init__(self) -> None:
        self.nbytes = 0
        self.busy_s = 0.0
        self.ramp_s = 0.0
        self._since = 0.0
        """When the last rest ended."""
        self._incomplete = 0
        self._mark = 0.0

    def note(self, now: float, nbytes: int, before: bool, after: bool) -> None:
        """A connection read `nbytes`, until `now`; it was amid a frame `before`, and is so `after`."""
        if not self._incomplete:
            if now - self._mark > GAP_S:
                self._since = now
        elif now - self._since > self.ramp_s:
            self.nbytes += nbytes
            self.busy_s += now - self._mark
        self._mark = now
        self._incomplete += int(after) - int(before)


class RateEstimator:
    """Sender's side: the link's rate from the receiver's totals, and the pace that follows from it."""

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=WINDOW)
        self._turn = 0  # the first sample is taken without a pace, so the second drains
        self._gain = 1.0
        self._nbytes = 0
        self._busy_s = 0.0

    @property
    def rate(self) -> float:
        """Bytes per second; 0 before the first sample."""
        return max(self._samples, default=0.0)

    def report(self, nbytes: int, busy_s: float) -> bool:
        """Takes the receiver's totals since the link came up. True if they gave a sample, and `pace` may differ.

        Totals that fall, or a busy time that does not grow, give none.
        """
        taken, spent = nbytes - self._nbytes, busy_s - self._busy_s
        if spent < SAMPLE_S:
            return False
        self._nbytes, self._busy_s = nbytes, busy_s
        if taken <= 0:
            return False
        sample, before = taken / spent, self.rate
        self._samples.append(sample)
        if self._gain > 1 and sample > GROWN * before:
            self._gain = FAST_GAIN
        else:
            self._turn = (self._turn + 1) % len(GAINS)
            self._gain = GAINS[self._turn]
        return True

    def skip(self, nbytes: int, busy_s: float) -> None:
        """What led to these totals was held back, and tells nothing about the link."""
        self._nbytes, self._busy_s = nbytes, busy_s

    def pace(self) -> int | None:
        """Bytes per second to send at. None: do not pace, as the rate is unknown or high."""
        if not 0 < self.rate < FAST_ENOUGH:
            return None
        return int(self.rate * SHARE * self._gain)
