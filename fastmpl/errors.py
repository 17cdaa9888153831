"""The errors that a user can cause or meet, each with its exit code; `fastmpl.cli` prints them and returns the code.

Any other exception is a fault of fastmpl, shown as a number (exit 70). Packages derive their own errors (DataError of
`fastmpl.data` for a bad image).
"""

from typing import ClassVar, Final

from fastmpl.untrusted import printable

UNEXPECTED: Final = 70  # EX_SOFTWARE of sysexits.h: the exit code of any other exception


class FastMPLError(Exception):
    """An error for the user, in one sentence: what was asked, what was found, what to do."""

    exit_code: int = 1
    topic: ClassVar[str] = "fastmpl"
    told: ClassVar[bool] = False  # whether the user has read it already

    def __str__(self) -> str:
        """The sentences, one a line, each after its topic: `Config: unknown key ...`. A terminal can show them."""
        return "\n".join(f"{self.topic}: {printable(line)}" for line in super().__str__().split("\n"))


class ConfigError(FastMPLError):
    """The command or the configuration cannot be followed."""

    exit_code = 2
    topic = "Config"


class DivergedError(FastMPLError):
    """Too many updates were not finite."""

    exit_code = 4
    topic = "Diverged"


class StorageError(FastMPLError):
    """A disk is full, or a file or folder cannot be written."""

    exit_code = 5
    topic = "Storage"


class FolderLostError(StorageError):
    """The run's folder was removed or given to another run: no later save can succeed either."""


class PeerLostError(FastMPLError):
    """Another rank has died or hangs."""

    exit_code = 6
    topic = "Ranks"


class ToldByPeer(FastMPLError):
    """Another rank has reported the error. This rank ends with the same exit code and prints nothing."""

    told = True

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.exit_code = code

    def __str__(self) -> str:
        """The sentence of the other rank, unchanged."""
        return "\n".join(map(printable, str(self.args[0]).split("\n")))


class Interrupted(FastMPLError):
    """The run was asked to stop. It is saved and can be resumed."""

    exit_code = 75
    topic = "Interrupted"
