"""The one exception of this package, in a file of its own so that every module here can raise it."""

from collections.abc import Iterator
from contextlib import contextmanager

from fastmpl.errors import ConfigError


class ModelError(ConfigError):
    """A network that does not exist, or cannot be used as asked."""


@contextmanager
def name_role(role: str) -> Iterator[None]:
    """Puts the role before the key that a ModelError of the block begins with: `student.pretrained = ...`."""
    try:
        yield
    except ModelError as error:
        sentence = str(error.args[0])
        raise ModelError(
            f"{role}.{sentence}" if sentence.startswith(("model =", "pretrained =")) else sentence
        ) from error
