"""Links between agents: control messages, bulk payloads, clients. Start at `transport.Transport`."""

from chaos.agent.transport.bulk import DISCARD, PAUSE, Verdict
from chaos.agent.transport.config import TransportConfig
from chaos.agent.transport.contact import DialFailed, request
from chaos.agent.transport.frames import BulkHeader
from chaos.agent.transport.handlers import Handlers
from chaos.agent.transport.link import LinkInfo
from chaos.agent.transport.security import PlainSecurity, Security, TlsSecurity
from chaos.agent.transport.transport import Transport

__all__ = [
    "DISCARD",
    "PAUSE",
    "BulkHeader",
    "DialFailed",
    "Handlers",
    "LinkInfo",
    "PlainSecurity",
    "Security",
    "TlsSecurity",
    "Transport",
    "TransportConfig",
    "Verdict",
    "request",
]
