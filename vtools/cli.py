"""The program: the table of its commands; what they do is in their packages."""

import importlib
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from vtools import __version__, machine, process

# Each command is a function of that name in its module; only the requested command's module is imported.
COMMANDS = {
    "fetch": "vtools.fetch",
    "clean": "vtools.clean",
    "split": "vtools.split",
    "stats": "vtools.stats",
    "train": "vtools.train",
    "make-delta": "vtools.delta",
    "apply-delta": "vtools.delta",
    "export": "vtools.export",
    "serve": "vtools.serve",
    "chat": "vtools.chat",
    "judge": "vtools.judge",
    "report": "vtools.report",
}


class _Command(TyperCommand):
    """A command that refuses an option given twice, of which the last would win silently."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        for option, times in Counter(given).items():
            listed = getattr(option, "multiple", False)
            same = getattr(option, "is_flag", False) and not option.secondary_opts
            if times > 1 and not listed and not same:
                ctx.fail(f"Option {max(option.opts, key=len)} is given {times} times: give it once.")
        return super().parse_args(ctx, args)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vtools {__version__}")
        raise typer.Exit()


def vtools(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Unix filters that turn shared conversations into a fine-tuned chatbot, serve it and judge it.

    Conversations flow through as JSONL: vtools fetch FILE | vtools clean | vtools split --tokenizer MODEL
    """


def build(names: Iterable[str] = COMMANDS) -> typer.Typer:
    """The program with these commands."""
    app = typer.Typer(
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(vtools)
    for name in names:
        function = getattr(importlib.import_module(COMMANDS[name]), name.replace("-", "_"))
        summary = (function.__doc__ or "").partition("\n")[0].rstrip(".")
        app.command(name, cls=_Command, short_help=summary)(process.command(name, function))
    return app


def main() -> None:
    """The program `vtools`."""
    machine.spin(machine.SPINS)
    wanted = sys.argv[1:2]
    build(wanted if wanted and wanted[0] in COMMANDS else COMMANDS)(prog_name="vtools")
