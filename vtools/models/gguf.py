"""Converting a GGUF file to an ordinary model folder, once."""

import json
import sys
from pathlib import Path

from vtools import process
from vtools.files import cache
from vtools.models import pretokenizer
from vtools.models.configs import read_json
from vtools.models.quiet import quiet_transformers
from vtools.process import Failure


def converted(source: Path) -> Path:
    """The cached Hugging Face folder of a GGUF file: in bf16, unless its weights are fp16 or fp32."""

    def make(target: Path) -> None:
        try:
            import gguf
            import torch
            import transformers
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ModuleNotFoundError as error:
            raise process.missing_extra(error.name or "gguf", "train", f"{source}: reading GGUF") from None
        quiet_transformers()
        try:
            reader = gguf.GGUFReader(source)
        except Exception as error:
            raise Failure(f"{source}: not a GGUF file that can be read: {error}") from None
        stored = {tensor.tensor_type for tensor in reader.tensors}
        half = gguf.GGMLQuantizationType.F16
        dtype = torch.float16 if half in stored and stored <= {half, gguf.GGMLQuantizationType.F32} else torch.bfloat16
        if stored == {gguf.GGMLQuantizationType.F32}:
            dtype = torch.float32
        try:
            tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
            loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=dtype)
        except Exception as error:  # a file may lack anything that transformers expects; 5.17 needs a bos token
            reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            raise Failure(f"{source}: transformers {transformers.__version__} cannot read it: {reason}") from None
        for name in ("bos", "eos", "padding"):  # transformers 5.17 reads the wrong end token from the file
            field = reader.fields.get(f"tokenizer.ggml.{name}_token_id")
            if field is not None:
                token = tokenizer.convert_ids_to_tokens(int(field.contents()))
                setattr(tokenizer, {"padding": "pad_token"}.get(name, f"{name}_token"), token)
        # The loaded model counts as quantised and can neither train nor save: move its weights to a new one.
        config = loaded.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        fresh = AutoModelForCausalLM.from_config(config, dtype=dtype)
        fresh.load_state_dict(loaded.state_dict())
        fresh.generation_config = type(fresh.generation_config)(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        fresh.save_pretrained(target)
        tokenizer.save_pretrained(target)
        kind, known_as = (reader.fields.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
        if kind is not None and kind.contents() == "gpt2" and known_as is not None:
            _restore_pretokenizer(target / "tokenizer.json", str(known_as.contents()), source)

    return cache.made_once(source, "gguf-3", make)


def _restore_pretokenizer(path: Path, known_as: str, source: Path) -> None:
    """Make a byte-level tokenizer split text as the GGUF file says; transformers knows only some of the names."""
    setup = read_json(path)
    if pretokenizer.restore(setup, known_as):
        path.write_text(json.dumps(setup, ensure_ascii=False), encoding="utf-8")
    else:
        print(
            f"{source}: vtools does not know its pre-tokenizer, llama.cpp's {known_as!r}: token ids may differ "
            "from llama.cpp's; use a model folder with tokenizer.json to be sure",
            file=sys.__stderr__,
        )
