"""llama.cpp as the reader of exported files, in a process of its own: as a server, and by its C functions for logits.

Run as a program it reads one JSON request on stdin, {"file", "chats", "texts", "asked", "rows"}, and writes one JSON
answer.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

TOP = 8
THREADS = 2


def ask(file: Path, **request: Any) -> dict[str, Any]:
    """Have llama.cpp load a file and answer: see `main`."""
    done = subprocess.run(
        ["nice", sys.executable, __file__],
        input=json.dumps({"file": str(file), **request}).encode(),
        capture_output=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def library() -> ctypes.CDLL | None:
    """The shared object of xllamacpp, which exports llama.cpp's C functions; None where it is not installed."""
    spec = importlib.util.find_spec("xllamacpp")
    found = sorted(Path(spec.submodule_search_locations[0]).glob("*.so")) if spec else []
    return ctypes.CDLL(str(found[0])) if found else None


needs_llama_cpp = pytest.mark.skipif(library() is None, reason="the package xllamacpp is not installed")


def main() -> None:
    """Answer the request on stdin: ids of chats and texts as the server has them, and what follows rows of ids."""
    request = json.load(sys.stdin)
    answer = serve(request) if request.keys() & {"chats", "texts", "asked"} else {}
    print(json.dumps(answer | (read(request["file"], request["rows"]) if "rows" in request else {})))
    sys.stdout.flush()


def serve(request: dict[str, Any]) -> dict[str, Any]:
    """Ids of chats under the file's template, up to the next answer, and of texts; greedy answers to the asked chats.

    An answer is its text and why it ended. The file alone says how to prompt and what stops; `stop` adds texts.
    """
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = request["file"]
    parameters.n_ctx, parameters.warmup, parameters.verbosity = 512, False, -1
    parameters.cpuparams.n_threads = THREADS
    server = xllamacpp.Server(parameters)

    def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
        address = f"{server.listening_address}{path}"
        call = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(call, timeout=200) as reply:
            return json.load(reply)

    def tokenize(text: str) -> list[int]:
        return post("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]

    def answer(chat: list[dict[str, str]]) -> list[str]:
        settings = {"temperature": 0, "max_tokens": request["limit"], "stop": request.get("stop", [])}
        (choice,) = post("/v1/chat/completions", {"messages": chat, **settings})["choices"]
        return [choice["message"]["content"], choice["finish_reason"]]

    return {
        "chats": [tokenize(post("/apply-template", {"messages": chat})["prompt"]) for chat in request.get("chats", [])],
        "texts": [tokenize(text) for text in request.get("texts", [])],
        "answers": [answer(chat) for chat in request.get("asked", [])],
    }


class Parameters(ctypes.Structure):
    """A structure of llama.h that is passed by value; only its first fields are known here."""

    _fields_ = [("field", ctypes.c_int32 * 256)]


class Batch(ctypes.Structure):
    """llama_batch."""

    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.POINTER(ctypes.c_float)),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
        ("more", ctypes.c_int64 * 8),
    ]


def read(file: str, rows: list[list[int]]) -> dict[str, Any]:
    """After every token of every row of ids: the best next tokens with their log-probabilities, best first.

    And the negative log-likelihood (nats) of all tokens that are not the first of their row, and their number.
    """
    import numpy as np

    llama = library()
    assert llama is not None
    silent = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    pointer = ctypes.c_void_p
    for name, result, arguments in (
        ("llama_log_set", None, [type(silent), pointer]),
        ("llama_model_default_params", Parameters, []),
        ("llama_context_default_params", Parameters, []),
        ("llama_model_load_from_file", pointer, [ctypes.c_char_p, Parameters]),
        ("llama_init_from_model", pointer, [pointer, Parameters]),
        ("llama_model_get_vocab", pointer, [pointer]),
        ("llama_vocab_n_tokens", ctypes.c_int32, [pointer]),
        ("llama_batch_init", Batch, [ctypes.c_int32] * 3),
        ("llama_decode", ctypes.c_int32, [pointer, Batch]),
        ("llama_get_logits", ctypes.POINTER(ctypes.c_float), [pointer]),
        ("llama_set_n_threads", None, [pointer, ctypes.c_int32, ctypes.c_int32]),
        ("llama_free", None, [pointer]),
    ):
        getattr(llama, name).restype, getattr(llama, name).argtypes = result, arguments
    llama.llama_log_set(silent, None)
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(file.encode(), llama.llama_model_default_params())
    vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    longest = max(map(len, rows))
    settings = llama.llama_context_default_params()
    settings.field[0:3] = [longest, longest, longest]  # n_ctx, n_batch, n_ubatch
    tops, total, count = [], 0.0, 0
    for row in rows:
        context = llama.llama_init_from_model(model, settings)
        llama.llama_set_n_threads(context, THREADS, THREADS)
        batch = llama.llama_batch_init(len(row), 0, 1)
        batch.n_tokens = len(row)
        for place, number in enumerate(row):
            batch.token[place], batch.pos[place], batch.logits[place] = number, place, 1
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
        assert llama.llama_decode(context, batch) == 0
        logits = np.ctypeslib.as_array(llama.llama_get_logits(context), (len(row), vocabulary)).astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
        best = np.argsort(-logits, axis=1, kind="stable")[:, :TOP]
        tops.append(
            [[[int(number), float(step[number])] for number in ids] for step, ids in zip(logits, best, strict=True)]
        )
        total -= float(logits[np.arange(len(row) - 1), row[1:]].sum())
        count += len(row) - 1
        llama.llama_free(context)
    return {"tops": tops, "nll": total, "count": count}


if __name__ == "__main__":
    main()
