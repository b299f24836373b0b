# ruff: noqa: TID253  imports torch at once: import this module inside a function
"""One local model that answers many requests at a time, for serve, chat and judge.

Templates, stop strings, admission (a request that cannot fit would end the generating thread for all), the size of the
cache, and a new start after an error. Generation is transformers' continuous batching, through `batching`.
"""

import atexit
import contextlib
import functools
import itertools
import math
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Self, cast

import torch

from vtools import machine
from vtools.inference import batching, identity
from vtools.inference.budget import Budget
from vtools.inference.client import TOKENS, Answer, Messages, Sampling, Slot, Token
from vtools.inference.limits import limit
from vtools.inference.text import Stream, chat_text
from vtools.models.configs import context_limit
from vtools.models.load import load_model
from vtools.models.reference import model_folder
from vtools.models.template import load_template
from vtools.models.tokenizer import load_tokenizer
from vtools.process import Failure, TryAgain
from vtools.weights import model_files
from vtools.weights.model_digest import digest

MAX_CONTEXT = 16384  # tokens per request, whatever the model supports: the KV cache must hold them
MAX_REQUESTS = 32  # at a time; others wait
TYPICAL = 512  # tokens of a request: of the cache's size on a CPU, where other programs use the memory too
SHARE = {"cpu": 0.5, "cuda": 0.8}  # of the free memory, for the cache at most
WIDTHS = {"fp32": 4, "bf16": 2, "fp16": 2}  # bytes


class EngineStopped(TryAgain):
    """The request was lost with the engine, or arrived while it was closing."""


class Engine:
    """One model in memory and the thread that generates with it. Thread-safe."""

    takes_schema: bool | None = False

    def __init__(
        self,
        reference: str,
        *,
        template: str | None = None,
        system: str | None = None,
        dtype: str = "auto",
        threads: int | None = None,
        max_requests: int = MAX_REQUESTS,
        clamp: bool = False,
        processes: int = 1,
    ) -> None:
        """Load tokenizer, template and weights; `threads` sets torch's threads in this process.

        `dtype` auto is fp32 on a CPU, where an answer then does not depend on who else is served, and bf16 on a GPU
        (fp16 on older ones). With `clamp`, an answer that may be longer than the context allows ends there instead of
        being refused. The cache holds `max_requests` at a time, as far as memory allows, which so many `processes` that
        start at the same time share. Raises Failure, also if the memory that is free does not hold the weights and the
        cache of one request.
        """
        if threads:
            torch.set_num_threads(threads)
        self.name, self._clamp = reference, clamp
        self.budget: Budget | None = None  # nobody sends a bill
        self.slot: Slot = contextlib.nullcontext
        self.tokenizer = load_tokenizer(reference)
        self.template = load_template(template, self.tokenizer, system)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = _automatic(device) if dtype == "auto" else dtype
        _refuse_too_large(reference, dtype, device, processes)
        self._model = cast(Any, load_model(reference, dtype)).to(device)
        self._model.forward = torch.inference_mode()(self._model.forward)
        if device.type == "cpu" and machine.products_repeat():
            _store_by_columns(self._model)
        config = self._model.config.get_text_config()
        self.context: int = min(context_limit(config.to_dict()) or MAX_CONTEXT, MAX_CONTEXT)
        self.vocabulary: int = config.vocab_size
        self._max_requests = max_requests
        free = machine.available_memory(device) // processes
        self._pages = _cache_pages(reference, config, WIDTHS[dtype], self.context, max_requests, device, free)
        self._stop_ids = sorted(self.template.stop_ids)
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._closed = False
        self._start()
        atexit.register(self.close)

    def identity(self) -> str:
        """The fingerprint of weights and template. Raises Failure."""
        return identity.fingerprint(digest(model_folder(self.name)), self.template)

    def complete(self, messages: Messages, sampling: Sampling) -> Answer:
        """The whole answer to a conversation; errors as for `stream`."""
        started = time.monotonic()
        with self.slot():
            stream = self.stream(messages, sampling)
            text = "".join(stream)
        usage = {ours: stream.usage[theirs] for ours, theirs in TOKENS.items()}
        elapsed = round((time.monotonic() - started) * 1000)
        logprobs = None if sampling.logprobs is None else [self._named(token) for token in stream.logprobs]
        return Answer(text, stream.finish or "stop", usage, self.name, elapsed, logprobs)

    def stream(self, messages: Messages, sampling: Sampling) -> Stream:
        """Start an answer and iterate over its text as it comes; an assistant message at the end is continued.

        Raises PromptTooLong (nothing is ever cut from a prompt), AnswerTooLong, EngineStopped, and
        Reject("template_error") where the template refuses the conversation.
        """
        prompt = self.template.prompt(messages)
        tokens = self.tokens(prompt, sampling)
        text = chat_text(self.template, messages, prompt, sampling.stop)
        return Stream(tokens, text, frozenset(self._stop_ids))

    def tokens(self, prompt: Sequence[int], sampling: Sampling) -> "TokenStream":
        """Start an answer to a prompt of token ids and iterate over its tokens, lists of Token, as they come.

        Stop strings are the text's matter. A prompt that ends in the first tokens of an answer, with the same seed,
        gives the others. Raises PromptTooLong, AnswerTooLong, EngineStopped, and Failure for ids that the model does
        not have.
        """
        prompt = list(prompt)
        most = limit(self.context, len(prompt), sampling.max_tokens, self._clamp)
        if not prompt or not 0 <= min(prompt) <= max(prompt) < self.vocabulary:
            raise Failure(f"the prompt must have token ids from 0 to {self.vocabulary - 1}, at least one")
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        seed = (seed + 2**63) % 2**64 - 2**63  # as torch's int64
        name = str(next(self._numbers))
        with self._lock:
            if self._closed:
                raise EngineStopped(f"{self.name}: the engine is closed")
            for _ in range(2):
                if not self._batching.running:
                    self._batching.close()  # its cache must go before there is another
                    self._start()
                request = self._batching.add(name, prompt, sampling, most, seed)
                if request is not None:
                    break
                # The thread is dying of another request; the next attempt starts a new one.
                patience = time.monotonic() + 5
                while self._batching.running and time.monotonic() < patience:
                    time.sleep(0.01)
            else:
                raise EngineStopped(f"{self.name}: the engine is stopping")
            end = functools.partial(self._batching.end, name)  # the engine's may be another one later
        return TokenStream(self.name, request, end, len(prompt), frozenset(self._stop_ids))

    def _named(self, token: Token) -> tuple[str, list[tuple[str, float]]]:
        """A token's text, and the texts of the likeliest with their log-probabilities."""
        named = self.tokenizer.named
        return named(token.id), [(named(each), logprob) for each, logprob in (token.top or {}).items()]

    @property
    def running(self) -> bool:
        """Whether the generating thread lives; the next request starts it again."""
        return self._batching.running

    @property
    def stepped(self) -> float:
        """When the last forward pass began, by the monotonic clock."""
        return self._batching.stepped

    def close(self) -> None:
        """Stop generating; running requests end in EngineStopped."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        atexit.unregister(self.close)
        self._batching.close()

    def _start(self) -> None:
        """Start the generating thread, also after it died of an error."""
        self._batching = batching.Batching(
            self._model, pages=self._pages, requests=self._max_requests, stop_ids=self._stop_ids
        )


class TokenStream:
    """The tokens of one answer in lists, the end token included. `finish` is "stop" or "length" with the last.

    Closing it, from any thread, stops the generation and the iteration.
    """

    def __init__(
        self,
        engine: str,
        request: batching.Request,
        end: Callable[[bool], None],
        prompt_tokens: int,
        stop_ids: frozenset[int],
    ) -> None:
        self.finish: str | None = None
        self.usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 0}
        self._engine, self._request, self._end, self._stop_ids = engine, request, end, stop_ids
        self._ended = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> list[Token]:
        if self._ended:
            raise StopIteration
        got = self._request.mailbox.get()
        if got is None:
            raise StopIteration
        error = got if isinstance(got, str) else got.error
        if isinstance(got, str) or error is not None:
            self.close()
            raise EngineStopped(f"{self._engine}: generation stopped: {error}")
        done = self.usage["completion_tokens"]
        ids = got.ids[done:]  # the list has all tokens from the first on
        place = self.usage["prompt_tokens"] + done
        self.usage["completion_tokens"] += len(ids)
        if got.last:
            self.finish = "stop" if ids and ids[-1] in self._stop_ids else "length"
            self._ended = True
            self._end(False)
        logprobs = self._request.logprobs
        if logprobs is None:
            return [Token(number) for number in ids]
        return [logprobs.pop(place + index) for index in range(len(ids))]

    def close(self) -> None:
        """Stop the generation, if it has not ended."""
        if not self._ended:
            self._ended = True
            self._end(True)
            self._request.mailbox.put(None)

    __del__ = close


def _automatic(device: torch.device) -> str:
    if device.type == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def _store_by_columns(model: Any) -> None:
    """Lay out linear layers by columns, from which MKL's repeatable products of few rows are a tenth quicker.

    An embedding that is also the output layer stays by rows, which are looked up.
    """
    embedding = model.get_input_embeddings().weight
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module.weight is not embedding:
            module.weight.data = module.weight.data.t().contiguous().t()


def _refuse_too_large(reference: str, dtype: str, device: torch.device, processes: int) -> None:
    """Raise Failure if the weights do not fit into the free memory."""
    tensors = model_files.tensors(model_folder(reference)).values()
    needed = sum(math.prod(tensor.shape) for tensor in tensors) * WIDTHS[dtype]
    free = machine.available_memory(device) // processes
    if needed > free:
        smaller = "; --dtype bf16 halves it" if dtype == "fp32" else ""
        raise Failure(f"{reference}: its weights take {_gib(needed)} as {dtype}, and {_gib(free)} are free{smaller}")


def _cache_pages(
    reference: str, config: Any, width: int, context: int, requests: int, device: torch.device, free: int
) -> int:
    """Pages of the KV cache: all requests at a time, as far as memory allows. Raises Failure if not even one fits."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # Keys and values of each layer, indices, and where attention has a mask, its column for a batch.
    token = 2 * config.num_hidden_layers * heads * head_width * width + 16 + batching.BATCH_TOKENS * width
    most = int(free * SHARE[device.type]) // token
    if most < context:
        raise Failure(
            f"{reference}: the cache for one text of {context} tokens takes {_gib(context * token)}, and {_gib(free)}"
            f" are free after its weights, of which it may take {SHARE[device.type]:.0%}; free some, or take a smaller"
            " --dtype or model"
        )
    wanted = requests * (context if device.type == "cuda" else min(context, TYPICAL))
    return -(-min(max(context, wanted), most) // batching.PAGE) + 2


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
