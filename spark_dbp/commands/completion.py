"""The command ``completion``. Imports `parsers`; `completion_scripts` in a function."""

from __future__ import annotations

import argparse
from functools import partial

from spark_dbp.commands.parsers import Options, add_command

SHELLS = ("bash", "zsh", "fish")


def add_commands(commands: argparse._SubParsersAction, options: Options) -> None:
    """Add the parser of the command; after all others, whose options it looks at when it is called."""
    completion = add_command(
        commands, options, "completion", partial(_completion, commands, options),
        "print a script by which a shell completes commands, options and keys of the configuration",
        examples=[
            "completion bash > ~/.local/share/bash-completion/completions/spark-dbp",
            "completion zsh > ~/.zfunc/_spark-dbp  # with fpath+=(~/.zfunc) before compinit in ~/.zshrc",
            "completion fish > ~/.config/fish/completions/spark-dbp.fish",
        ],
        takes_settings=False,
    )  # fmt: skip
    completion.add_argument("shell", metavar="SHELL", choices=SHELLS, help="bash, zsh or fish")


def _completion(commands: argparse._SubParsersAction, options: Options, parsed: argparse.Namespace) -> int:
    from spark_dbp.commands.completion_scripts import write_script

    print(write_script(parsed.shell, commands, options))
    return 0
