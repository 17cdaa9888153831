"""The one exception of this package, in a file of its own so that every module here can raise it."""

from fastmpl.errors import ConfigError


class ModelError(ConfigError):
    """A network was asked for that does not exist or cannot be used."""
