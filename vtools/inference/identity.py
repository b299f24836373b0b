"""What an answer depends on besides its request: the weights and the template of its model, as one name."""

import hashlib

from vtools.models.reference import model_folder
from vtools.models.template import Template, load_template
from vtools.models.tokenizer import load_tokenizer
from vtools.weights.model_digest import digest


def fingerprint(weights: str, template: Template) -> str:
    """The name of a model by the digest of its weights and by its template."""
    text = "\0".join((template.source, *template.stop_strings))
    return f"{weights[:16]}-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"


def of_reference(reference: str, template: str | None, system: str | None) -> str:
    """The fingerprint of a model that is a folder, a hub id or a .gguf file. Raises Failure."""
    return fingerprint(digest(model_folder(reference)), load_template(template, load_tokenizer(reference), system))
