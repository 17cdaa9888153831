"""Starts several ranks again when one is lost: `python launch/restart.py N deepspeed --num_gpus 8 launch/train.py CONFIG`.

N restarts at most, each on another port and from the newest checkpoint. `torchrun` in the place of `deepspeed` works too.
One process needs no launcher: `fastmpl train CONFIG --restarts N`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from fastmpl.cli.endings import print_error, say
from fastmpl.cli.verbs_with_config import TrainOptions
from fastmpl.config.load import load
from fastmpl.config.options import parse
from fastmpl.errors import ConfigError, FastMPLError
from fastmpl.run.restarts import free_port, supervise


def restart(arguments: Sequence[str]) -> int:
    """Runs the launcher's command of `arguments` under supervision and returns its exit code."""
    script = next((at for at, word in enumerate(arguments) if Path(word).name == "train.py"), 0)
    if not arguments or not arguments[0].isdecimal() or script < 2:
        raise ConfigError(
            "Use: python launch/restart.py N deepspeed|torchrun [OPTIONS] launch/train.py CONFIG [OPTIONS]."
        )
    options, overrides = parse(TrainOptions, "fastmpl train", arguments[script + 1 :])
    config = load(options.config, overrides)

    def command(attempt: int) -> list[str]:
        words = list(arguments[1:])
        if attempt and "--resume" in words:  # it held for the first attempt; later ones continue
            words[words.index("--resume") + 1] = "auto"
        if "deepspeed" in words[0] and "--master_port" not in words:
            words[1:1] = ["--master_port", str(free_port())]
        return words

    folder = Path(config.run.output) / config.run.name
    return supervise(command, folder, int(arguments[0]), tell=lambda line: say(line, error=True))


if __name__ == "__main__":
    try:
        sys.exit(restart(sys.argv[1:]))
    except FastMPLError as error:
        sys.exit(print_error(error, debug=False))
