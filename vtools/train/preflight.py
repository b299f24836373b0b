# ruff: noqa: TID253
"""The check before the first step, of a run and of its dry run: what would fail or differ in the end is said now.

The saved folder is written without weights and read by transformers, whose renderings and ids are compared with those
that are trained.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from vtools import provenance
from vtools.models import rendering
from vtools.models.configs import read_json
from vtools.models.quiet import quiet_transformers
from vtools.models.template import Template
from vtools.process import Failure, say
from vtools.records import conversation, jsonl, streams
from vtools.records.jsonl import Reject
from vtools.train import attention, checkpoint, device, lora, rank, save, shard, untrained_tokens
from vtools.train.data import Corpus
from vtools.train.request import Inputs, Request
from vtools.weights import tied_head
from vtools.weights.model_files import is_buffer, weight_files

LOOKED_AT = 256  # conversations whose answers' ends are checked
# What tokenizers are known to treat differently: letters of two characters, widths, digits, white space.
TEXTS = ("e\u0301t\u00e9 \ufb01 \uff21 12345", "  a\n\n\tb \r\n c  ", "I'm don't \u4f60\u597d \U0001f600")


def check(request: Request, inputs: Inputs, chosen: Template) -> None:
    """Raise Failure for what would fail after the last step; say on stderr what the user should know before it."""
    if request.out and request.resume == "auto" and (request.out / provenance.FILE).exists():
        return  # finished, or refused by its identity
    quiet_transformers()
    quiet = request.quiet or os.environ.get("RANK", "0") != "0"
    network = rank.empty(request, inputs, torch.bfloat16, attention.NAME)
    shard.layers_of(network)
    notes = _weights(request, inputs, network, chosen)
    notes += _room(request, network)
    with tempfile.TemporaryDirectory(prefix="vtools-") as folder:
        theirs = _rehearsed(network, chosen, Path(folder), request.save_dtype)
        _answers_end(inputs.corpus, chosen, read_json(Path(folder) / "generation_config.json"))
        notes += _texts(inputs.corpus, chosen, theirs)
    for note in [] if quiet else notes:
        say("train", note)


def _weights(request: Request, inputs: Inputs, network: PreTrainedModel, chosen: Template) -> list[str]:
    """Compare names, shapes and dtypes of the stored tensors with the model's; what is odd, in words."""
    folder = inputs.folder
    try:
        weight_files(folder)
    except Failure:
        if request.dry_run:  # of a model on the hub, nothing was downloaded
            return []
        raise
    base = shard.Weights(folder)
    wanted = {lora.base_name(name): tuple(one.shape) for name, one in network.named_parameters() if "lora_" not in name}
    for name, shape in wanted.items():
        base.find(name, shape)
    notes = []
    known = {*wanted, *network.state_dict(), tied_head.HEAD}
    ignored = [name for name in base.stored if name not in known and not is_buffer(name)]
    if ignored:
        first = ", ".join(ignored[:3]) + (", ..." if len(ignored) > 3 else "")
        kind = (network.config.architectures or ["model"])[0]
        notes.append(f"{folder}: {len(ignored)} tensors are not part of a {kind} and are left out ({first})")
    if read_json(folder / "config.json").get("tie_word_embeddings") and not network.config.tie_word_embeddings:
        notes.append(
            f"{folder}: its head differs from its embedding, although config.json ties them: they are kept apart"
        )
    if request.lora and not request.train_embeddings:
        names = untrained_tokens.found(base, network, chosen)
        if names:
            notes.append(
                f"the base has never learned {', '.join(names)}, which the template writes, and --lora leaves "
                "embeddings as they are: add --train-embeddings"
            )
    return notes


def _room(request: Request, network: PreTrainedModel) -> list[str]:
    """Compare the disk's free space with what checkpoints and result take.

    Raises Failure if it holds no checkpoint beside the result; if it holds fewer than --keep and one being written,
    that is said.
    """
    if request.out is None or request.gpu:  # planned for another machine
        return []
    place = next(one for one in (request.out.absolute(), *request.out.absolute().parents) if one.is_dir())
    old = [path for path in (request.out / "checkpoints").rglob("*") if path.is_file()]
    free = shutil.disk_usage(place).free + sum(path.stat().st_size for path in old)
    trained = sum(one.numel() for one in network.parameters() if one.requires_grad)
    whole = sum(one.numel() for name, one in network.named_parameters() if "lora_" not in name)
    result = whole * device.DTYPES[request.save_dtype].itemsize + (4 * trained if request.lora else 0)
    one, keep = checkpoint.BYTES * trained, request.keep or 2
    sizes = f"a checkpoint takes {_gb(one)}, the result {_gb(result)}, and {_gb(free)} are free"
    if result + one > free:
        raise Failure(f"{request.out}: not enough disk space: {sizes}; free some, or choose another --out")
    if result + (keep + 1) * one > free:
        need = _gb(result + (keep + 1) * one)
        return [f"{request.out}: {keep} checkpoints, one being written and the result need {need}: {sizes}"]
    return []


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def _rehearsed(network: PreTrainedModel, chosen: Template, folder: Path, dtype: str) -> Any:
    """Write all but the weights to the folder, as in the end; the tokenizer that transformers reads from it."""
    step = "saved"
    try:
        save.write_beside(network, chosen, folder, dtype)
        step = "loaded"
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        transformers.GenerationConfig.from_pretrained(folder)
        found = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Failure:
        raise
    except Exception as error:  # transformers raises errors of every class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].replace(str(folder), "")
        raise Failure(
            f"{chosen.tokenizer.folder}: the tuned model could not be {step}: {reason}; repair its JSON files"
        ) from None
    for name in ("rope_parameters", "max_position_embeddings", "vocab_size", "tie_word_embeddings"):
        before, after = getattr(network.config, name, None), getattr(config, name, None)
        if before != after:
            raise Failure(f"{chosen.tokenizer.folder}: config.json would not keep {name}: {before} is read as {after}")
    return found


def _answers_end(corpus: Corpus, chosen: Template, generation: dict[str, Any]) -> None:
    """Raise Failure for an answer whose last trained token is no stop of the saved generation_config.json."""
    ends = generation.get("eos_token_id")
    ids = set(ends if isinstance(ends, list) else [ends])
    texts = tuple(generation.get("stop_strings") or ())
    for index in range(min(len(corpus), LOOKED_AT)):
        row, trained = corpus.conversation(index)
        for end in range(1, len(row)):  # a last answer may have been cut
            if not trained[end - 1] or trained[end] or row[end - 1] in ids:
                continue
            tail = chosen.tokenizer.decode(list(row[max(0, end - 16) : end]), skip_special=False)
            if not (texts and tail.rstrip().endswith(tuple(text.rstrip() for text in texts))):
                raise Failure(
                    f"conversation {index + 1}: an answer is trained to end in {tail[-20:]!r}, where no program would "
                    "stop: set eos_token_id in generation_config.json, or choose another --template"
                )


def _texts(corpus: Corpus, chosen: Template, theirs: Any) -> list[str]:
    """Compare renderings and ids of the first conversations with transformers'. Raises Failure if a rendering differs.

    Where ids alone differ, those of tokenizer.json are right: the base was made with them, and they are saved.
    """
    texts = list(TEXTS)
    joined: list[str] = []
    dated = "strftime_now" in chosen.source
    names = {f"{kind}_token": getattr(chosen.tokenizer, kind) or "" for kind in ("bos", "eos", "pad")}
    where = f"{chosen.tokenizer.folder}: chat template"
    program = rendering.Program(chosen.name, chosen.source, where, names, datetime.now().strftime if dated else None)
    for number, sample in enumerate(corpus.samples, start=1):
        with contextlib.suppress(Reject):  # what the template refuses has been made to fit by an option
            messages = _messages(sample, number)
            ours = program.render(messages).replace(rendering.BEGIN, "").replace(rendering.END, "")
            try:
                written = theirs.apply_chat_template(messages, tokenize=False)
            except Exception as error:  # templates are programs, which can fail in any way
                written = f"{type(error).__name__}: {error}"
            if written != ours:
                place = _shared(written, ours)
                around = slice(max(0, place - 20), place + 40)
                raise Failure(
                    f"{where}: transformers renders conversation {number} as {written[around]!r}, it would be "
                    f"trained as {ours[around]!r}; choose another --template"
                )
            texts.append(ours)
            if not dated and not joined:
                joined = _other_joints(corpus, number, messages, chosen, theirs, ours)
    return _other_ids(texts, chosen, theirs) or joined


def _messages(sample: str, number: int) -> list[dict[str, Any]]:
    """The messages of a record as it came in. Raises Reject."""
    record, _ = jsonl.parse(streams.Value(sample.encode(), "", number))
    if isinstance(record, Reject):
        raise record
    read = conversation.read(record)["messages"]
    return [{"role": message["role"], "content": message["content"]} for message in read]


def _other_joints(
    corpus: Corpus, number: int, messages: list[dict[str, Any]], chosen: Template, theirs: Any, text: str
) -> list[str]:
    """Where the ids that are trained are not those of the whole text, in words.

    The name of a control token within a message differs on purpose: it is trained as text.
    """
    ids = list(corpus.conversation(number - 1)[0])
    whole = _ids(theirs, chosen, text)[: len(ids)]
    if ids == whole or any(name in one["content"] for name in chosen.tokenizer.added for one in messages):
        return []
    place = _shared(ids, whole)
    around = slice(max(0, place - 2), place + 3)
    trained, other = (chosen.tokenizer.decode(one[around], skip_special=False) for one in (ids, whole))
    return [
        f"conversation {number} as a whole has other tokens in transformers: {other!r} where {trained!r} is trained, "
        "since prompt and answer are encoded on their own"
    ]


def _other_ids(texts: list[str], chosen: Template, theirs: Any) -> list[str]:
    """The first text of which transformers' tokenizer makes other ids than tokenizer.json, in words."""
    backend = chosen.tokenizer.backend
    for text in texts:
        own = backend.encode(text, add_special_tokens=False)
        other = _ids(theirs, chosen, text)
        if own.ids == other:
            continue
        place = _shared(own.ids, other)
        start = own.offsets[place][0] if place < len(own.ids) else len(text)
        tokens = [[backend.id_to_token(number) for number in ids[place : place + 3]] for ids in (own.ids, other)]
        return [
            f"transformers {transformers.__version__} reads this tokenizer as {type(theirs).__name__}, which makes "
            f"{tokens[1]} of {text[start : start + 12]!r}; trained are {tokens[0]}, those of tokenizer.json"
        ]
    return []


def _ids(theirs: Any, chosen: Template, text: str) -> list[int]:
    """The ids of transformers' tokenizer. Raises Failure if it fails."""
    try:
        found: list[int] = theirs(text, add_special_tokens=False)["input_ids"]
    except Exception as error:  # tokenizers raises nothing else
        raise Failure(
            f"{chosen.tokenizer.folder}: transformers reads this tokenizer as {type(theirs).__name__}, which fails "
            f"({error}): correct tokenizer_class in tokenizer_config.json"
        ) from None
    return found


def _shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many items two sequences begin with alike."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
