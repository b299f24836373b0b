"""The options that mean the same in every command, declared once."""

import functools
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import typer

number = functools.partial(typer.Option, metavar="N")
Files = Annotated[list[str] | None, typer.Argument(metavar="[FILE...]", help="Input files; - is stdin (default).")]
Out = Annotated[
    str | None, typer.Option("-o", "--out", metavar="FILE", help="Write here, not to stdout; whole or not at all.")
]
RejectsFile = Annotated[
    str | None,
    typer.Option("--rejects", metavar="FILE", help="Save rejected records with reasons; continue past bad input."),
]
Stats = Annotated[
    str | None, typer.Option("--stats", metavar="FILE", help="Write the counts here, as one JSON object.")
]
_AT_ONCE = "Run N processes, threads or requests at once; order is kept."
Jobs = Annotated[int, number("-j", "--jobs", min=1, help=_AT_ONCE)]
REQUESTS = 4  # at once, of a model
Requests = Annotated[int | None, number("-j", "--jobs", min=1, show_default=str(REQUESTS), help=_AT_ONCE)]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Hide the progress and the summary on stderr.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Print more details; on an error, the traceback.")]
Plot = Annotated[str | None, typer.Option("--plot", metavar="FILE", help="Draw a chart to this file: .svg or .png.")]
DryRun = Annotated[bool, typer.Option("-n", "--dry-run", help="Show what would be done, and its cost; do nothing.")]
PricesFile = Annotated[
    str | None,
    typer.Option("--prices", metavar="FILE", help="Read dollars per GPU-hour or million tokens from this JSON."),
]
MaxUsd = Annotated[
    float | None,
    typer.Option("--max-usd", min=0.0, metavar="DOLLARS", help="Stop before the answers cost more (needs --prices)."),
]
Batch = Annotated[
    bool,
    typer.Option(
        "--batch", help="Ask by the server's Batch API: cheaper, within 24 hours (needs -o; repeat to collect later)."
    ),
]
Dtype = Literal["fp32", "bf16", "fp16"]
Roles = Annotated[
    list[str] | None,
    typer.Option("--role", metavar="THEIRS=OURS", help="Read a role as ours: helper=assistant; repeatable."),
]
Columns = Annotated[
    str | None,
    typer.Option(
        "--columns",
        metavar="OURS=COLUMN,...",
        help="Name the columns to read, also of CSV and TSV: user=question,assistant=answer; system, id, messages.",
    ),
]
Seed = Annotated[int, number("--seed", help="Set the random seed.")]
Format = Annotated[Literal["messages", "sharegpt"], typer.Option("--format", help="Which record format to write.")]
AskedModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        envvar="VTOOLS_MODEL",
        help="Use this model: a name that the server knows, or a folder, hub id or .gguf file to load in this process.",
    ),
]
BaseUrl = Annotated[
    str | None,
    typer.Option(
        "--base-url",
        metavar="URL[,URL]",
        help="Ask this OpenAI-compatible server; where it fails, the next. [env var: OPENAI_BASE_URL]",
    ),
]
Timeout = Annotated[
    float, typer.Option("--timeout", min=0.1, metavar="SECONDS", help="Give up when the server is silent for so long.")
]
Temperature = Annotated[
    float, typer.Option("--temperature", min=0.0, metavar="NUMBER", help="Set the temperature; 0 is greedy.")
]
TemplateName = Annotated[
    str | None,
    typer.Option(
        "--template",
        metavar="NAME",
        help="Use this prompt template, not the model's own: vicuna-v1.1, vicuna-v0, alpaca, llama-2 or chatml.",
    ),
]


def _emptied(text: str | None) -> str | None:
    return "" if text == "none" else text


SystemText = Annotated[  # "" if it is to be empty
    str | None,
    typer.Option(
        "--system",
        callback=_emptied,
        metavar="TEXT|none",
        help="Set the system text of conversations without one, instead of the template's; none: empty.",
    ),
]
FoldSystem = Annotated[
    bool,
    typer.Option(
        "--fold-system", help="Write system messages into the first question, if the template has no place for them."
    ),
]


class Common(NamedTuple):
    """The options of every filter: output, rejects and counts files; number of jobs; whether it is quiet."""

    out: str | None = None
    rejects: str | None = None
    stats: str | None = None
    jobs: int = 1
    quiet: bool = False


def fields_from(kind: Any, given: Mapping[str, Any]) -> Any:
    """An instance of a class of fields, each taken by name from a command's arguments."""
    return kind(**{name: given[name] for name in kind.__annotations__ if name in given})
