"""Completion in bash, zsh and fish: what a shell is told once, and what may stand where a line is being typed. Imports no TensorFlow."""

import contextlib
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra.plugins.completion_plugin import DefaultCompletionPlugin

from trainer import config

_WITH_SETTINGS = ("train", "check")  # commands that take GROUP=CHOICE and KEY=VALUE; the others take files,
_WITH_DATA = ("evaluate", "predict", "export")  # of which these take data behind the run
_FORMATS = ("format=keras", "format=savedmodel", "format=onnx")

# Each shell calls the command with the line up to the cursor, and offers its own file names where nothing else fits.
_BASH = r"""
_gradtrain_completion() {
    local line=${COMP_LINE:0:COMP_POINT} word handled= found
    word=${line##*[[:space:]]}
    # Where = and : end a word, readline puts what is chosen in the place of what stands behind the last of them.
    [[ $COMP_WORDBREAKS == *=* ]] && handled=${word%"${word##*[=:]}"}
    COMPREPLY=()
    while IFS= read -r found; do
        COMPREPLY+=("${found#"$handled"}")
    done < <(COMP_LINE=$line command gradtrain -sc query=bash 2>/dev/null)
}
complete -o nospace -o default -F _gradtrain_completion gradtrain
"""
_ZSH = r"""
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
_gradtrain() {
    local -a found
    local -i none=1
    found=(${(f)"$(COMP_LINE="${(j: :)words[1,CURRENT-1]} $PREFIX" command gradtrain -sc query=zsh 2>/dev/null)"})
    (( $#found )) || { compset -P '*='; _files; return }
    compadd -S '' -- ${(M)found:#*[=./]} && none=0
    compadd -- ${found:#*[=./]} && none=0
    return none
}
compdef _gradtrain gradtrain
"""
_FISH = r"""
function __gradtrain_complete
    set -lx COMP_LINE (commandline -cp | string join ' ')
    set -l found (command gradtrain -sc query=fish 2>/dev/null)
    if set -q found[1]
        printf '%s\n' $found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete -c gradtrain -f -a '(__gradtrain_complete)'
"""
INSTALL = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
UNINSTALL = {
    "bash": "complete -r gradtrain 2>/dev/null; unset -f _gradtrain_completion",
    "zsh": "compdef -d gradtrain; unfunction _gradtrain 2>/dev/null",
    "fish": "complete -c gradtrain -e; functions -e __gradtrain_complete",
}


def candidates(line: str, commands: Sequence[str], options: Callable[[str], Sequence[str]]) -> list[str]:
    """What may stand in the place of the last, perhaps unfinished word of a line; nothing where files are what fits.

    Args:
        line: up to the cursor, the program's name first.
        commands: all there are.
        options: of a command.
    """
    _, *words = line.split() or [""]
    typed = words.pop() if words and not line[-1].isspace() else ""
    named = re.search(r"(?:--config-dir|-cd)[ =](\S+)", line)
    config_dir = Path(named[1]) if named and Path(named[1]).is_dir() else None
    command = words[0] if words and words[0] in commands else None
    found = [] if words else list(commands)
    if typed.startswith("-"):
        found += options(command or "train")
    elif {"-h", "--help"} & set(words):
        found += config.groups(config.config_dirs(config_dir))
    elif command in (None, *_WITH_SETTINGS) and words[-1:] not in (["-cd"], ["--config-dir"]):
        found += _settings([*(words if command is None else words[1:]), typed], config_dir)
    elif command in _WITH_DATA and len(words) > 1:
        found += _FORMATS if command == "export" and not set(_FORMATS) & set(words) else ()
        if typed.startswith("data"):
            found += _settings([*(word for word in words if word.startswith("data")), typed], config_dir)
    elif command == "runs" and len(words) == 1 and len(typed) > 1:  # one letter may begin a folder's name as well
        found += ("show", "prune")
    return sorted(word for word in set(found) if word.startswith(typed) and "=_" not in word)  # _base is no choice


def _settings(words: Sequence[str], config_dir: Path | None) -> list[str]:
    """Groups, choices, keys and their values, by Hydra, for the last of the words."""
    key, sign, _ = words[-1].partition("=")
    asked = [*words[:-1], f"{key}=" if sign and "." in key else words[-1]]  # Hydra knows the value that a key has
    # A half-typed line that can't be read completes to nothing; nothing may be printed into the user's prompt.
    with (
        contextlib.suppress(Exception, SystemExit),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        config.completion(config_dir) as hydra,
    ):
        found = DefaultCompletionPlugin(hydra.config_loader)._query("config", " ".join(asked))
        either = [f"{key}=true", f"{key}=false"]
        return either if len(found) == 1 and found[0] in either else found
    return []
