"""Shell completion: `ssl-kd completion bash` prints a few lines for your shell's start file.

Commands come from the table of commands; options are read from a command's own `--help`, which answers in a tenth of a
second, so a completion never lags behind the settings. (shtab and argcomplete want one argparse parser that holds every
command; ours are made by the command that runs.)
"""

from __future__ import annotations

from collections.abc import Sequence

from ssl_kd.runtime.command_line import OneLineParser

BASH = r"""
_ssl_kd() {
  local word="${COMP_WORDS[COMP_CWORD]}"
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "COMMANDS" -- "$word"))
  elif [[ "$word" == -* ]]; then
    COMPREPLY=($(compgen -W "$(ssl-kd "${COMP_WORDS[1]}" --help 2>/dev/null | grep -oE -- '^ +--[a-z][a-z_-]*')" -- "$word"))
  else
    COMPREPLY=($(compgen -f -- "$word"))
  fi
}
complete -o filenames -F _ssl_kd ssl-kd
"""

SCRIPTS = {
    "bash": BASH,
    "zsh": "autoload -U +X bashcompinit && bashcompinit\n" + BASH,
    "fish": r"""
complete -c ssl-kd -n __fish_use_subcommand -f -a "COMMANDS"
function __ssl_kd_options
  ssl-kd (commandline -opc)[2] --help 2>/dev/null | string match -r -- '--[a-z][a-z_-]*'
end
complete -c ssl-kd -n "not __fish_use_subcommand" -a "(__ssl_kd_options)"
""",
}


def main(argv: Sequence[str], commands: Sequence[str]) -> int:
    """Print the completion script of a shell; put it where the shell starts."""
    parser = OneLineParser("ssl-kd completion", description=main.__doc__)
    parser.add_argument("shell", choices=list(SCRIPTS), help="bash: ssl-kd completion bash >> ~/.bashrc")
    print(SCRIPTS[parser.parse_args(argv).shell].replace("COMMANDS", " ".join(commands)).strip())
    return 0
