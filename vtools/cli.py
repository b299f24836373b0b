"""The table of commands; nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from vtools import __version__, chat, clean, delta, fetch, judge, process, report, serve, split, stats, train

COMMANDS: dict[str, Callable[..., Any]] = {
    "fetch": fetch.fetch,
    "clean": clean.clean,
    "split": split.split,
    "stats": stats.stats,
    "train": train.train,
    "make-delta": delta.make_delta,
    "apply-delta": delta.apply_delta,
    "serve": serve.serve,
    "chat": chat.chat,
    "judge": judge.judge,
    "report": report.report,
}

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vtools {__version__}")
        raise typer.Exit()


@app.callback()
def vtools(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Unix filters that take shared conversations to a judged, served chatbot.

    Every tool reads and writes JSONL: vtools fetch FILE | vtools clean | vtools split --max-tokens 2048
    """


for name, function in COMMANDS.items():
    app.command(name)(process.command(name, function))


def main() -> None:
    """The program `vtools`."""
    app(prog_name="vtools")
