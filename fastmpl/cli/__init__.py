"""The command `fastmpl`: its verbs, and the one place that turns errors into exit codes.

Nothing here imports torch, so that --help and a mistake in a file are answered at once. A verb imports what it runs.
"""

import difflib
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from fastmpl import __version__
from fastmpl.cli.bounds import require_bounds
from fastmpl.cli.completion import format_completion
from fastmpl.cli.endings import open_terminal, print_error, print_unexpected
from fastmpl.cli.verbs_before_runs import (
    CompletionOptions,
    DemoOptions,
    DoctorOptions,
    InitOptions,
    PackOptions,
    init,
    pack,
    run_demo,
    run_doctor,
)
from fastmpl.cli.verbs_on_runs import (
    CompareOptions,
    EvaluateOptions,
    ExportOptions,
    PredictOptions,
    ReplayOptions,
    ReportOptions,
    StatusOptions,
    compare,
    evaluate,
    export,
    predict,
    print_status,
    replay,
    write_report,
)
from fastmpl.cli.verbs_with_config import (
    AblateOptions,
    AnalyseOptions,
    CheckOptions,
    DistillOptions,
    PlanOptions,
    ProbeOptions,
    TrainOptions,
    ablate,
    analyse,
    check,
    distill,
    plan,
    probe,
    train,
)
from fastmpl.config.load import load
from fastmpl.config.options import parse, parse_plain
from fastmpl.config.schema import Config
from fastmpl.errors import ConfigError, FastMPLError, ToldByPeer

INTERRUPTED: Final = 130  # Ctrl-C, as shells count it
WIDEST: Final = 100  # columns of the list of verbs
FIRST_RANK_SPEAKS: Final = 3.0  # seconds: a launcher ends every rank as soon as one has ended


def print_completion(options: CompletionOptions) -> None:
    print(format_completion(options.shell, VERBS, WITH_CONFIG), end="")


# A verb with a configuration accepts an option for every key of it.
WITH_CONFIG: Final[dict[str, tuple[type[Any], Callable[[Any, Config], None]]]] = {
    "train": (TrainOptions, train),
    "check": (CheckOptions, check),
    "plan": (PlanOptions, plan),
    "distill": (DistillOptions, distill),
    "probe": (ProbeOptions, probe),
    "ablate": (AblateOptions, ablate),
    "analyse": (AnalyseOptions, analyse),
}
WITHOUT_CONFIG: Final[dict[str, tuple[type[Any], Callable[[Any], None]]]] = {
    "demo": (DemoOptions, run_demo),
    "pack": (PackOptions, pack),
    "report": (ReportOptions, write_report),
    "compare": (CompareOptions, compare),
    "init": (InitOptions, init),
    "evaluate": (EvaluateOptions, evaluate),
    "predict": (PredictOptions, predict),
    "export": (ExportOptions, export),
    "status": (StatusOptions, print_status),
    "replay": (ReplayOptions, replay),
    "doctor": (DoctorOptions, run_doctor),
    "completion": (CompletionOptions, print_completion),
}
VERBS: Final = {name: options for name, (options, _) in (WITH_CONFIG | WITHOUT_CONFIG).items()}


def _format_usage() -> str:
    width = max(40, min(WIDEST, shutil.get_terminal_size().columns))
    column = max(map(len, VERBS)) + 4
    verbs = "\n".join(
        textwrap.fill(f"  {name:{column - 2}}{options.__doc__}", width, subsequent_indent=" " * column)
        for name, options in VERBS.items()
    )
    return (
        f"usage: fastmpl VERB ...\n\n{verbs}\n\nfastmpl VERB --help explains a verb; fastmpl --version is this version."
    )


def _unknown_verb(name: str) -> ConfigError:
    near = difflib.get_close_matches(name, VERBS, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"The verbs are {', '.join(VERBS)}."
    if name.endswith(".toml"):
        hint = f"Did you mean 'fastmpl train {name}'?"
    return ConfigError(f"fastmpl has no verb {name[:64]!r}. {hint} `fastmpl --help` explains them.")


def _run_verb(arguments: Sequence[str]) -> int:
    if not arguments:
        print(_format_usage(), file=sys.stderr)
        return ConfigError.exit_code
    name, rest = arguments[0], arguments[1:]
    if name in ("-h", "--help", "--help-all", "help"):
        print(_format_usage())
    elif name in ("--version", "version"):
        print(f"fastmpl {__version__}")
    elif name in WITHOUT_CONFIG:
        options_type, verb = WITHOUT_CONFIG[name]
        plain = parse_plain(options_type, f"fastmpl {name}", rest)
        require_bounds(plain)
        verb(plain)
    elif name in WITH_CONFIG:
        _run_verb_with_config(name, rest)
    else:
        raise _unknown_verb(name)
    return 0


def _run_verb_with_config(name: str, arguments: Sequence[str]) -> None:
    options_type, verb = WITH_CONFIG[name]
    try:
        options, overrides = parse(options_type, f"fastmpl {name}", arguments)
        require_bounds(options)
        config = load(options.config, overrides)
    except FastMPLError as error:
        if os.environ.get("LOCAL_RANK", "0") != "0":  # the first rank of this machine reads the same file and says it
            time.sleep(FIRST_RANK_SPEAKS)
            raise ToldByPeer(error.exit_code, str(error)) from error
        raise
    verb(options, config)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a verb and returns the exit code.

    0 done, 2 usage or configuration, 3 data, 4 diverged, 5 storage or memory, 6 a rank was lost or hangs,
    70 a fault of fastmpl itself, 75 interrupted and resumable, 130 Ctrl-C. Raises nothing.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    open_terminal()
    try:
        code = _run_verb(arguments)
        sys.stdout.flush()
        return code
    except FastMPLError as error:
        return print_error(error, debug)
    except SystemExit as ended:  # help, and usage that tyro explains
        return ended.code if isinstance(ended.code, int) else 0 if ended.code is None else ConfigError.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        return print_unexpected(error, debug)
