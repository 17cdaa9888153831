"""The example configurations: launch/configs of the repository, which a wheel carries as fastmpl/configs."""

import difflib
from pathlib import Path
from typing import Final

from fastmpl.errors import ConfigError

_PACKAGE: Final = Path(__file__).parents[1]
_INSTALLED: Final = _PACKAGE / "configs"
EXAMPLES: Final = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "launch" / "configs"


def list_examples() -> list[str]:
    """The names of the examples, without `.toml`, in order."""
    return sorted(path.stem for path in EXAMPLES.glob("*.toml"))


def find_example(name: str) -> Path:
    """The file of the example `name`. Raises ConfigError with the names there are."""
    name = name.removesuffix(".toml")
    known = list_examples()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(known)}."
        raise ConfigError(f"there is no example {name[:64]!r}. {hint}")
    return EXAMPLES / f"{name}.toml"
