"""Completion of command lines in a shell: keys and choices of `--set`, and how a shell asks.

A shell sends the line up to the cursor, and gets one candidate a line: its kind (`plain`, `file`, `dir`) and its text.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from click.shell_completion import CompletionItem, ShellComplete, split_arg_string

PATH_KEYS = ("model", "manifest", "voices", "output", "storage_options")


def settings(incomplete: str, keys: tuple[str, ...] | None = None) -> list[CompletionItem[str]]:
    """Candidates for the value of `--set`: `key=`, and behind it the key's choices.

    Args:
        keys: only these, with all below them; None for every key of a job.
    """
    from jobs.config.config import JobConfig

    kinds = {name: kind for name, kind in _leaves(JobConfig) if keys is None or name.split(".")[0] in keys}
    key, equals, value = incomplete.partition("=")
    if not equals:
        return [CompletionItem(f"{name}=") for name in kinds if name.startswith(key)]
    if key in kinds and key in PATH_KEYS:
        return [CompletionItem(value, type="file")]
    return [CompletionItem(f"{key}={each}") for each in _choices(kinds.get(key)) if each.startswith(value)]


def _leaves(section: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of a configuration and their types."""
    for name, field in section.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            yield from _leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.annotation


def _choices(kind: Any) -> Iterator[str]:
    """The values of a type that has few, as YAML."""
    if get_origin(kind) is Literal:
        yield from map(str, get_args(kind))
    elif kind is bool:
        yield from ("true", "false")
    elif kind is NoneType:
        yield "null"
    else:
        for part in get_args(kind):
            yield from _choices(part)


class Shell(ShellComplete):
    """What the shells have in common.

    Attributes:
        source_template: defines the completion, in the shell's language.
    """

    source_template = ""
    _option = ""  # of `--option=value` at the cursor what is before the value, which is not a candidate's part
    _cut = 0  # characters of the word that the shell keeps as they are

    def source(self) -> str:
        """The script; the names in it are fixed."""
        return self.source_template

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the one at the cursor, and that one."""
        line = os.environ["COMP_LINE"]
        words = split_arg_string(line)[1:]
        word = words.pop() if words and not line[-1:].isspace() else ""
        option, equals, _ = word.partition("=")
        self._option = option + equals if word.startswith("-") and equals else ""
        self._cut = self.kept(word)
        return words, word

    def kept(self, word: str) -> int:
        """How many characters of the word at the cursor the shell does not replace."""
        return 0

    def format_completion(self, item: CompletionItem[Any]) -> str:
        """A candidate as a line."""
        value = str(item.value)
        return f"{item.type},{f'{self._option}{value}'[self._cut :] if item.type == 'plain' else value}"


class Bash(Shell):
    """Bash breaks words at `=`, among others, and replaces the last piece only."""

    name = "bash"
    source_template = r"""# s3gen: completion for bash
_s3gen_completion() {
    local IFS=$'\n' item value
    COMPREPLY=()
    for item in $(COMP_LINE="${COMP_LINE:0:COMP_POINT}" _S3GEN_COMPLETE=bash_complete "$1" 2>/dev/null); do
        value="${item#*,}"
        case "${item%%,*}" in
            file) compopt -o default ;;
            dir) compopt -o dirnames ;;
            plain)
                COMPREPLY+=("$value")
                [[ "$value" == *= ]] && compopt -o nospace
                ;;
        esac
    done
    return 0
}
complete -F _s3gen_completion s3gen
"""

    def kept(self, word: str) -> int:
        """Up to the last break: no candidate has one of the others."""
        return 1 + word.rfind("=")


class Zsh(Shell):
    """Zsh replaces whole words."""

    name = "zsh"
    source_template = r"""#compdef s3gen
# s3gen: completion for zsh
_s3gen_completion() {
    local item value
    local -a whole open
    for item in "${(@f)$(COMP_LINE="${words[1,CURRENT-1]} $PREFIX" _S3GEN_COMPLETE=zsh_complete s3gen 2>/dev/null)}"; do
        value="${item#*,}"
        case "${item%%,*}" in
            file) compset -p $(( ${#PREFIX} - ${#value} )); _path_files ;;
            dir) compset -p $(( ${#PREFIX} - ${#value} )); _path_files -/ ;;
            plain) if [[ "$value" == *= ]]; then open+=("$value"); else whole+=("$value"); fi ;;
        esac
    done
    (( $#open )) && compadd -S '' -V open -a open
    (( $#whole )) && compadd -V whole -a whole
    return 0
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _s3gen_completion "$@"
else
    compdef _s3gen_completion s3gen
fi
"""


class Fish(Shell):
    """Fish replaces whole words, and puts no space behind a `=`."""

    name = "fish"
    source_template = r"""# s3gen: completion for fish
function __s3gen_before
    set -l word (commandline -ct)
    string sub -l (math (string length -- "$word") - (string length -- "$argv[1]")) -- "$word"
end
function _s3gen_completion
    set -l line (commandline -cp)
    for item in (env COMP_LINE="$line" _S3GEN_COMPLETE=fish_complete s3gen 2>/dev/null)
        set -l parts (string split -m 1 , -- $item)
        switch $parts[1]
            case plain
                echo $parts[2]
            case file
                set -l kept (__s3gen_before $parts[2])
                for path in (__fish_complete_path $parts[2])
                    echo "$kept$path"
                end
            case dir
                set -l kept (__s3gen_before $parts[2])
                for path in (__fish_complete_directories $parts[2])
                    echo "$kept$path"
                end
        end
    end
end
complete --no-files --command s3gen --arguments "(_s3gen_completion)"
"""


SHELLS: dict[str, type[Shell]] = {shell.name: shell for shell in (Bash, Zsh, Fish)}
