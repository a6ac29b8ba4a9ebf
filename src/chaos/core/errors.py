"""Whose fault it is, in the type: ours, the user's, or a remote peer's."""


class ChaosError(Exception):
    """Something the user can act on. The message is one line: what is wrong, and the remedy."""

    exit_code = 1


class RemoteProtocolError(ChaosError):
    """A remote sent what the protocol does not allow. It costs the sender its link and nobody else anything."""


class Refused(ChaosError):
    """The run declined this peer (another model, a taken name, a party not admitted)."""

    exit_code = 4


class RunLost(ChaosError):
    """No member that holds the training state is left; the run can go on only from a checkpoint."""

    exit_code = 5
