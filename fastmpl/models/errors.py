"""The one exception of this package, in a file of its own so that every module here can raise it."""


class ModelError(ValueError):
    """A network was asked for that does not exist or cannot be used; the message is one sentence for the user."""
