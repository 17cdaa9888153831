"""The command `fastmpl`: its verbs, and the one place that turns errors into exit codes.

Nothing here imports torch: --help and a mistake in a file answer at once. A verb imports what it runs.
"""

import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Final

from fastmpl.cli.configured import Ablate, Check, Distill, Plan, Train, ablate, check, distill, plan, train
from fastmpl.cli.others import (
    Demo,
    Doctor,
    Evaluate,
    Init,
    Pack,
    Predict,
    Report,
    Status,
    demo,
    doctor,
    evaluate,
    init,
    pack,
    predict,
    report,
    status,
)
from fastmpl.config.load import load
from fastmpl.config.options import parse, parse_plain
from fastmpl.config.schema import Config
from fastmpl.errors import FastMPLError, ToldByPeer

INTERRUPTED: Final = 130  # Ctrl-C, as shells count it
SPEAKS_FIRST: Final = 3.0  # seconds: a launcher ends every rank as soon as one has ended

# A verb over a configuration takes the options of every key of it.
CONFIGURED: Final[dict[str, tuple[type[Any], Callable[[Any, Config], None]]]] = {
    "train": (Train, train),
    "check": (Check, check),
    "plan": (Plan, plan),
    "distill": (Distill, distill),
    "ablate": (Ablate, ablate),
}
OTHERS: Final[dict[str, tuple[type[Any], Callable[[Any], None]]]] = {
    "demo": (Demo, demo),
    "pack": (Pack, pack),
    "report": (Report, report),
    "init": (Init, init),
    "evaluate": (Evaluate, evaluate),
    "predict": (Predict, predict),
    "status": (Status, status),
    "doctor": (Doctor, doctor),
}
VERBS: Final = {name: asked for name, (asked, _) in (CONFIGURED | OTHERS).items()}


def _usage() -> str:
    verbs = "\n".join(f"  {name:10}{asked.__doc__}" for name, asked in VERBS.items())
    return f"usage: fastmpl VERB ...\n\n{verbs}\n\nfastmpl VERB --help explains a verb."


def _run(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] not in VERBS:
        asked_for_help = bool(arguments) and arguments[0] in ("-h", "--help", "--help-all")
        print(_usage(), file=sys.stdout if asked_for_help else sys.stderr)
        return 0 if asked_for_help else 2
    name, rest = arguments[0], arguments[1:]
    if name in OTHERS:
        asked_type, other = OTHERS[name]
        other(parse_plain(asked_type, f"fastmpl {name}", rest))
        return 0
    asked_type, verb = CONFIGURED[name]
    try:
        asked, overrides = parse(asked_type, f"fastmpl {name}", rest)
        config = load(asked.config, overrides)
    except FastMPLError as error:
        if os.environ.get("LOCAL_RANK", "0") != "0":  # the first rank of this machine reads the same and says it
            time.sleep(SPEAKS_FIRST)
            raise ToldByPeer(error.exit_code, str(error)) from error
        raise
    verb(asked, config)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a verb and gives the exit code: 0 done, 2 usage or configuration, 3 data, 4 diverged, 5 storage,
    6 a peer was lost or hung, 75 interrupted and resumable, 130 Ctrl-C. Other exceptions are mistakes of ours and pass.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return _run(arguments)
    except FastMPLError as error:
        if "--debug" in arguments:
            traceback.print_exc()
        elif not error.told:
            print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
