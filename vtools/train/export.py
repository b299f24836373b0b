# ruff: noqa: TID253
"""The finished model: safetensors, tokenizer, template, configs, and where all of it came from."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from vtools import jsonl
from vtools.process import Failure
from vtools.template import Template
from vtools.train import provenance

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "vocab.json", "merges.txt",
)  # fmt: skip
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def export(model: PreTrainedModel, template: Template, out: Path, dtype: str, about: dict[str, Any]) -> None:
    """Save the model (which is cast in place) to `out`; the file `about` it comes last and says that all is there.

    Raises Failure if a file cannot be written, or does not read back as the model.
    """
    part = out / ".export.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        model.to(DTYPES[dtype])  # type: ignore[arg-type]
        model.config.use_cache = True
        generation = model.generation_config
        generation.use_cache = True
        sampled = (generation.temperature or 1.0) != 1.0 or (generation.top_p or 1.0) != 1.0
        if sampled:  # LLaMA's own files leave it out, and transformers refuses to save them so
            generation.do_sample = True
        model.save_pretrained(part, max_shard_size="5GB")
        _copy_tokenizer(template, part)
        template.save(part)
        _verify(model, part)
        umask = os.umask(0)
        os.umask(umask)
        for path in sorted(part.iterdir()):
            path.chmod(0o666 & ~umask)  # safetensors writes files that nobody else may read
            jsonl.sync(path)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise Failure(f"{out}: the model cannot be saved ({error}); free space and rerun") from None
    names = {path.name for path in part.iterdir()}
    for old in out.glob("*.safetensors*"):
        if old.name not in names:
            old.unlink()
    for path in sorted(part.iterdir()):
        os.replace(path, out / path.name)
    part.rmdir()
    jsonl.sync(out)
    with jsonl.atomic(out / provenance.FILE) as stream:
        stream.write((json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode())


def _copy_tokenizer(template: Template, part: Path) -> None:
    """The base's tokenizer files as they are, but for a chat template in the config, which would rival ours."""
    source = template.tokenizer.folder
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, part / name)
    if not (part / "tokenizer.json").exists():
        template.tokenizer.backend.save(str(part / "tokenizer.json"))
    config = part / "tokenizer_config.json"
    if config.exists():
        settings = json.loads(config.read_text(encoding="utf-8"))
        if settings.pop("chat_template", None) is not None:
            config.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _verify(model: PreTrainedModel, part: Path) -> None:
    """Read every saved tensor back and compare it with the model's."""
    own = model.state_dict()
    seen = set()
    for path in sorted(part.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  not a dict
                seen.add(name)
                if name in own and not torch.equal(file.get_tensor(name), own[name].cpu()):
                    raise Failure(f"{path}: {name} does not read back as it was written: the disk is at fault?")
    tied = {parameter.data_ptr() for name, parameter in own.items() if name in seen}
    missing = [name for name, parameter in own.items() if name not in seen and parameter.data_ptr() not in tied]
    if missing:
        raise Failure(f"{part}: {missing[0]} was not saved")
