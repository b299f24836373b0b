"""The options that mean the same in every tool, declared once."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

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
Plot = Annotated[str | None, typer.Option("--plot", metavar="FILE", help="Draw a picture: .svg or .png.")]
DryRun = Annotated[bool, typer.Option("-n", "--dry-run", help="Say what would be done and what it costs; do nothing.")]
PricesFile = Annotated[
    str | None,
    typer.Option("--prices", metavar="FILE", help="With --dry-run: what a GPU-hour or a million tokens cost (JSON)."),
]
Dtype = Literal["fp32", "bf16", "fp16"]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
Format = Annotated[
    Literal["messages", "sharegpt"], typer.Option("--format", help="Shape of the records that are written.")
]
AskedModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        envvar="VTOOLS_MODEL",
        help="A name that the server knows, or a folder, .gguf file or hub id to load here.",
    ),
]
BaseUrl = Annotated[
    str | None,
    typer.Option("--base-url", metavar="URL", help="An OpenAI-compatible server. [env var: OPENAI_BASE_URL]"),
]
Timeout = Annotated[float, typer.Option("--timeout", min=0.1, metavar="SECONDS", help="Longest silence of the server.")]
Temperature = Annotated[float, typer.Option("--temperature", min=0.0, help="0 takes the likeliest token each time.")]
TemplateName = Annotated[
    str | None,
    typer.Option("--template", metavar="NAME", help="Prompt template; default: the one stored with the tokenizer."),
]

SystemText = Annotated[
    str | None,
    typer.Option(
        "--system", metavar="TEXT|none", help="Use this system text where a conversation has none; none: an empty one."
    ),
]


@dataclass(frozen=True, slots=True)
class Common:
    """Where a filter writes, what it rejects and its counts; how many it works on at a time; whether it is quiet."""

    out: str | None = None
    rejects: str | None = None
    stats: str | None = None
    jobs: int = 1
    quiet: bool = False


def fields_from(kind: Any, given: Mapping[str, Any]) -> Any:
    """An instance of a dataclass, its fields taken by name from what a command was given."""
    return kind(**{field.name: given[field.name] for field in dataclasses.fields(kind) if field.name in given})
