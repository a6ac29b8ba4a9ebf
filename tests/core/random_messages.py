"""Every message from its own type, as a hypothesis strategy and quickly by the thousand: what decodes can be drawn."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
from hypothesis import strategies as st
from msgspec import inspect

from chaos.core.messages import LastWords, PeerMessage, Sealed
from chaos.core.types import PeerInfo
from chaos.sim.symbols import info, peer_id, sign

IDS = [peer_id(i) for i in range(6)]
COUNTS = st.one_of(st.integers(0, 12), st.integers(0, 2**63 - 1))


def strategy(tp: Any) -> st.SearchStrategy[Any]:
    """Values of this msgspec type; ids and small numbers that mean something to a run come up often."""
    match tp:
        case inspect.StructType(cls=cls) if cls is PeerInfo:
            return st.builds(info, st.integers(0, 5), st.integers(1, 3))
        case inspect.StructType(cls=cls) if cls is Sealed:
            words = strategy(inspect.type_info(LastWords)).map(msgspec.msgpack.encode)
            return st.one_of(words.map(lambda w: Sealed(w, sign(w))), st.builds(Sealed, words, st.just(b"0" * 64)))
        case inspect.StructType(cls=cls, fields=fields):
            return st.builds(cls, *(strategy(f.type) for f in fields))
        case inspect.UnionType(types=types):
            return st.one_of([strategy(t) for t in types])
        case inspect.VarTupleType(item_type=item, max_length=limit):
            return st.lists(strategy(item), max_size=min(limit or 3, 3)).map(tuple)
        case inspect.TupleType(item_types=items):
            return st.tuples(*(strategy(t) for t in items))
        case inspect.StrType(pattern=r"^[0-9a-f]{16}\Z"):
            return st.sampled_from(IDS)
        case inspect.StrType(pattern=pattern) if pattern:
            return st.from_regex(pattern)
        case inspect.StrType(max_length=limit):
            return st.one_of(st.just("one"), st.text(max_size=min(limit or 8, 8)))
        case inspect.BytesType(min_length=low, max_length=high):
            return st.binary(min_size=low or 0, max_size=min(high or 16, max(low or 0, 16)))
        case inspect.IntType(le=high) if high is not None and high < 2**62:
            return st.integers(tp.ge or 0, high)
        case inspect.IntType():
            return COUNTS
        case inspect.FloatType(ge=low, le=high):
            return st.floats(min_value=low, max_value=high, allow_nan=False)
        case inspect.BoolType():
            return st.booleans()
        case inspect.NoneType():
            return st.none()
    raise AssertionError(f"no strategy for {tp}")


MESSAGES: list[type[PeerMessage]] = list(PeerMessage.__args__)  # type: ignore[attr-defined]
BY_TYPE = {tp: strategy(inspect.type_info(tp)) for tp in MESSAGES}
ANY_MESSAGE = st.sampled_from(MESSAGES).flatmap(lambda tp: BY_TYPE[tp])


def draw(tp: Any, random: Random) -> Any:
    """A value of this msgspec type: a hundred times faster than an example of its strategy, from wider ranges."""
    match tp:
        case inspect.StructType(cls=cls) if cls is PeerInfo:
            return info(random.choice([random.randrange(6), random.getrandbits(32)]), random.randrange(1, 4))
        case inspect.StructType(cls=cls) if cls is Sealed:
            words = msgspec.msgpack.encode(draw(inspect.type_info(LastWords), random))
            return Sealed(words, random.choice([sign(words), b"0" * 64]))
        case inspect.StructType(cls=cls, fields=fields):
            return cls(*(draw(field.type, random) for field in fields))
        case inspect.UnionType(types=types):
            return draw(random.choice(types), random)
        case inspect.VarTupleType(item_type=item):
            return tuple(draw(item, random) for _ in range(random.randrange(4)))
        case inspect.TupleType(item_types=items):
            return tuple(draw(item, random) for item in items)
        case inspect.StrType(pattern=r"^[0-9a-f]{16}\Z"):
            return peer_id(random.choice([random.randrange(6), random.getrandbits(32)]))
        case inspect.StrType(pattern=pattern) if pattern and "|" in pattern:
            return random.choice(pattern[2 : pattern.index(")")].split("|"))
        case inspect.StrType():
            return random.choice(["one", "run", "", f"{random.getrandbits(32):x}"])
        case inspect.BytesType(min_length=low, max_length=high):
            return random.randbytes(low or random.choice([0, min(high or 32, 200)]))
        case inspect.IntType(le=high):
            value = random.choice([random.randrange(12), random.randrange(6000), random.getrandbits(62)])
            return max(tp.ge or 0, min(high or value, value))
        case inspect.FloatType(le=high):
            return random.choice([0.0, 1.0, min(1e300 if high is None else high, 10.0 ** random.randrange(10))])
        case inspect.BoolType():
            return random.random() < 0.5
        case inspect.NoneType():
            return None
    raise AssertionError(f"no value for {tp}")


def message(tp: type[PeerMessage], random: Random) -> PeerMessage:
    """One message of this type."""
    drawn: PeerMessage = draw(inspect.type_info(tp), random)
    return drawn
