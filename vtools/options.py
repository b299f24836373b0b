"""The options that mean the same in every tool, declared once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import typer

Files = Annotated[list[str] | None, typer.Argument(metavar="[FILE...]", help="Input files; - is stdin (default).")]
Out = Annotated[str | None, typer.Option("-o", "--out", metavar="FILE", help="Write here, whole or not at all.")]
RejectsFile = Annotated[
    str | None,
    typer.Option("--rejects", metavar="FILE", help="Save what is dropped, with reasons; go on after bad input."),
]
Stats = Annotated[str | None, typer.Option("--stats", metavar="FILE", help="Write the counts as one JSON object.")]
Jobs = Annotated[
    int, typer.Option("-j", "--jobs", min=1, help="Processes, threads or requests at a time; order is kept.")
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress, no closing line.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Say more; on an error, show where.")]
DryRun = Annotated[bool, typer.Option("-n", "--dry-run", help="Say what would be done and what it costs; do nothing.")]
Dtype = Literal["fp32", "bf16", "fp16"]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
TemplateName = Annotated[
    str | None,
    typer.Option("--template", metavar="NAME", help="Prompt template; default: the one stored with the tokenizer."),
]


@dataclass(frozen=True, slots=True)
class Common:
    """Where a filter writes, what it rejects and its counts; how many it works on at a time; whether it is quiet."""

    out: str | None = None
    rejects: str | None = None
    stats: str | None = None
    jobs: int = 1
    quiet: bool = False
