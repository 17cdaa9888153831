"""The bounds of the numbers that a verb takes, declared beside each option and asked before the verb begins."""

import math
from dataclasses import fields
from typing import Any, NamedTuple, get_type_hints

from fastmpl.errors import ConfigError


class Bounds(NamedTuple):
    """The smallest and the largest number that an option takes, both allowed."""

    least: float
    most: float = math.inf  # infinity itself is no number

    def hold(self, value: float) -> bool:
        return math.isfinite(value) and self.least <= value <= self.most

    def describe(self) -> str:
        return f"at least {self.least:,}" if math.isinf(self.most) else f"from {self.least:,} to {self.most:,}"


def require_bounds(options: Any) -> None:
    """Raises ConfigError for a number of `options`, a verb's dataclass, that is outside the bounds of its field."""
    hints = get_type_hints(type(options), include_extras=True)
    for field in fields(options):
        value = getattr(options, field.name)
        for bounds in getattr(hints[field.name], "__metadata__", ()):
            if not isinstance(bounds, Bounds):
                continue
            for number in value if isinstance(value, tuple) else (value,):
                if not bounds.hold(number):
                    name = field.name.replace("_", "-")
                    raise ConfigError(f"--{name} {number} cannot be used: a number {bounds.describe()} is needed.")
