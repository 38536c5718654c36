"""``registry-drain completion SHELL``: print what makes a shell complete the commands and their options.

The script is made from the commands' own parsers, so that it knows what they know; no registry is asked while somebody
types.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

from registry_drain.cli.command.arguments import CommandParser
from registry_drain.cli.command.exit_status import ExitStatus
from registry_drain.cli.command.invocation import Document, Verdict, invoke
from registry_drain.cli.command.output import Output
from registry_drain.errors import ConfigurationError

_SHELLS = ("bash", "zsh", "fish")
_PROGRAMS = ("registry-drain", "deregister")
_EPILOG = """\
exit status: 0 printed; 2 wrong arguments, or there is no shtab

examples:
  eval "$(registry-drain completion bash)"                     in ~/.bashrc
  registry-drain completion zsh > ~/.zfunc/_registry-drain     with that folder in fpath
  registry-drain completion bash --program deregister          for the command of that name
"""


def main(arguments: Sequence[str] | None = None, *, program: str = "registry-drain completion") -> int:
    """Run the command and return its exit status."""
    return invoke(make_parser(program), _completion, arguments)


def make_parser(program: str) -> CommandParser:
    """Return what takes the arguments apart."""
    parser = CommandParser(program, "Print a script that makes a shell complete commands and options.", _EPILOG)
    parser.add_argument("shell", choices=_SHELLS, help="of which shell")
    parser.add_argument(
        "--program", choices=_PROGRAMS, default=_PROGRAMS[0], help="what is to be completed (default: %(default)s)"
    )
    parser.add_debug()
    return parser


def _completion(options: argparse.Namespace, output: Output, _document: Document) -> Verdict:
    try:
        import shtab
    except ModuleNotFoundError as error:
        raise ConfigurationError("completion needs shtab: pip install 'registry-drain[cli]'") from error
    if options.shell not in shtab.SUPPORTED_SHELLS:
        known = ", ".join(shell for shell in _SHELLS if shell in shtab.SUPPORTED_SHELLS)
        raise ConfigurationError(f"this shtab is too old for {options.shell}, it knows {known}: upgrade it")
    output.write(shtab.complete(_parser_of(options.program), shell=options.shell) + "\n")
    return ExitStatus.DONE, ""


def _parser_of(program: str) -> argparse.ArgumentParser:
    """Return the parser of a whole program, its commands included, which otherwise exist one at a time."""
    from registry_drain.cli.main import COMMANDS

    if program != _PROGRAMS[0]:
        return _command_parser(COMMANDS[program][0], program)
    root = argparse.ArgumentParser(prog=program)
    root.add_argument("--version", action="store_true", help="show the version")
    # Of argparse's own class: subparsers are made with arguments that ours does not take.
    commands = root.add_subparsers(dest="command", metavar="COMMAND", parser_class=argparse.ArgumentParser)
    for name, (module, summary) in COMMANDS.items():
        like = _command_parser(module, f"{program} {name}")
        commands.add_parser(name, help=summary, description=like.description, parents=[like], add_help=False)
    return root


def _command_parser(module: str, program: str) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = importlib.import_module(module).make_parser(program)
    return made
