"""What a run can end with, and the exit code of each; `fastmpl.cli` prints the sentence and returns the code.

A mistake of the user or a fault of the machine is one of these; anything else that is raised is a mistake of ours, and
keeps its traceback. Packages derive their own (a bad image is a DataError of `fastmpl.data`).
"""

from typing import ClassVar


class FastMPLError(Exception):
    """One sentence for the user: what was asked, what was found, what to do."""

    exit_code: int = 1
    topic: ClassVar[str] = "fastmpl"
    told: ClassVar[bool] = False  # the user has read it already

    def __str__(self) -> str:
        """The sentences, one a line, each led by what it is about: `Config: unknown key ...`."""
        return "\n".join(f"{self.topic}: {line}" for line in super().__str__().splitlines())


class ConfigError(FastMPLError):
    """The command or the configuration cannot be followed."""

    exit_code = 2
    topic = "Config"


class DivergedError(FastMPLError):
    """Too many updates were not finite."""

    exit_code = 4
    topic = "Diverged"


class StorageError(FastMPLError):
    """A disk is full, or a folder cannot be written."""

    exit_code = 5
    topic = "Storage"


class PeerLostError(FastMPLError):
    """Another rank died or hangs."""

    exit_code = 6
    topic = "Ranks"


class ToldByPeer(FastMPLError):
    """Another rank has said what happened; this one ends with the same code, and in silence."""

    told = True

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.exit_code = code

    def __str__(self) -> str:
        """The other's sentence, as it was."""
        return str(self.args[0])


class Interrupted(FastMPLError):
    """The run was asked to stop, saved itself, and can be resumed."""

    exit_code = 75
    topic = "Interrupted"
