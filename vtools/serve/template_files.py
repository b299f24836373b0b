"""A model's tokenizer and template as they travel from a worker to an edge: files by name."""

import json
import tempfile
from pathlib import Path
from typing import Any

from vtools.models.configs import read_json
from vtools.models.template import Template, load_template
from vtools.models.tokenizer import load_tokenizer
from vtools.process import Failure

SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
NAMES = ("tokenizer.json", "chat_template.jinja", "generation_config.json", *SETTINGS)


def written(template: Template) -> dict[str, str]:
    """The texts of the files that make the same template elsewhere."""
    tokenizer = template.tokenizer
    ends: dict[str, Any] = {"eos_token_id": sorted(template.stop_ids)}
    if template.stop_strings:
        ends["stop_strings"] = list(template.stop_strings)
    files = {name: json.dumps(read_json(tokenizer.folder / name)) for name in SETTINGS}
    files["tokenizer.json"] = tokenizer.backend.to_str()
    files["chat_template.jinja"] = template.source
    files["generation_config.json"] = json.dumps(ends)
    return files


def read(files: Any) -> Template:
    """The template of such files. Raises Failure."""
    if (
        not isinstance(files, dict)
        or set(files) != set(NAMES)
        or not all(isinstance(text, str) for text in files.values())
    ):
        raise Failure("what the worker sent is not a tokenizer and its template")
    with tempfile.TemporaryDirectory(prefix="vtools-serve-") as folder:
        for name, text in files.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        return load_template("auto", load_tokenizer(folder))
