"""What Tab completes in a shell: verbs, their options, the keys of the configuration, and the values of a key.

`fastmpl completion bash` prints the program of the shell. Files and folders are completed by the shell itself.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final, Literal, get_args, get_origin

from tyro.conf import Positional

from fastmpl.config.load import KEYS

Shell = Literal["bash", "zsh", "fish"]

# COMP_WORDBREAKS has no "." and no "-", so that a word such as --student.lr is one word
_BASH: Final = """\
# Tab completion of fastmpl. Add this line to ~/.bashrc:
#   eval "$(fastmpl completion bash)"
_fastmpl() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
  COMPREPLY=()
  if [ "$COMP_CWORD" = 1 ]; then
    words="{verbs}"
  else
    case "$before" in
{values}
    esac
    if [ -z "$words" ]; then
      case "$word" in -*) ;; *) return ;; esac
      case "${{COMP_WORDS[1]}}" in
{options}
      esac
    fi
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o bashdefault -o default -F _fastmpl fastmpl
"""
_ZSH: Final = """\
# Tab completion of fastmpl. Add this line to ~/.zshrc:
#   eval "$(fastmpl completion zsh)"
autoload -U +X compinit && compinit
autoload -U +X bashcompinit && bashcompinit
"""
_FISH: Final = """\
# Tab completion of fastmpl. Add this line to ~/.config/fish/config.fish:
#   fastmpl completion fish | source
"""


def format_completion(shell: Shell, verbs: Mapping[str, type[Any]], with_config: Mapping[str, object]) -> str:
    """The program that `shell` reads. verbs: the options of each; with_config: those that accept every key, too."""
    if shell == "fish":
        return _FISH + _format_fish(verbs, with_config)
    bash = _BASH.format(
        verbs=" ".join(verbs),
        values="\n".join(
            f'      {option}) words="{" ".join(values)}" ;;' for option, values in _list_values(verbs).items()
        ),
        options="\n".join(
            f'        {name}) words="{" ".join(_list_options(options, name in with_config))}" ;;'
            for name, options in verbs.items()
        ),
    )
    return _ZSH + bash if shell == "zsh" else bash


def _list_options(verb: type[Any], takes_keys: bool) -> list[str]:
    own = [f"--{field.name.replace('_', '-')}" for field in fields(verb) if not _is_positional(field.type)]
    return [*own, "--help", *(["--help-all", *(f"--{key}" for key in KEYS)] if takes_keys else [])]


def _is_positional(annotation: Any) -> bool:
    """`Positional[T]` is T with tyro's mark."""
    (mark,) = get_args(Positional[str])[1:]
    return mark in getattr(annotation, "__metadata__", ())


def _list_values(verbs: Mapping[str, type[Any]]) -> dict[str, list[str]]:
    """The values of the options that accept a few words alone."""
    found = {f"--{key}": ["true", "false"] for key, field in KEYS.items() if field.annotation is bool}
    kinds: dict[str, Any] = {key: field.annotation for key, field in KEYS.items()}
    kinds |= {own.name.replace("_", "-"): own.type for verb in verbs.values() for own in fields(verb)}
    return found | {
        f"--{name}": list(map(str, get_args(kind))) for name, kind in kinds.items() if get_origin(kind) is Literal
    }


def _format_fish(verbs: Mapping[str, type[Any]], with_config: Mapping[str, object]) -> str:
    first = "complete -c fastmpl -n __fish_use_subcommand"
    lines = [f'{first} -f -a {name} -d "{options.__doc__}"' for name, options in verbs.items()]
    values = _list_values(verbs)
    for name, options in verbs.items():
        seen = f'complete -c fastmpl -n "__fish_seen_subcommand_from {name}"'
        for option in _list_options(options, name in with_config):
            words = f' -x -a "{" ".join(values[option])}"' if option in values else ""
            lines.append(f"{seen} -l {option.removeprefix('--')}{words}")
    return "\n".join(lines) + "\n"
