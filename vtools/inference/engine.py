# ruff: noqa: TID253  imports torch at once: import this module inside a function
"""Token generation with one local model: many requests at a time, streamed, for serve, chat and train's samples.

The tokens come from transformers' continuous batching. What it lacks is here: a template, stop strings, a seed and a
temperature for each request, admission (a request that cannot fit ends its thread for everybody), and restarts.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import os
import queue
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

# Threads that spin while they wait cost up to ten times the speed beside a busy neighbour.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessorList,
)

from vtools.models.load import load_model
from vtools.models.template import load_template
from vtools.models.tokenizer import load_tokenizer
from vtools.process import Failure, TryAgain

if TYPE_CHECKING:
    from vtools.inference.endpoint import Answer

MAX_CONTEXT = 16384  # tokens of one request, whatever the model claims: the cache must hold them
CACHE = 8192  # tokens that the cache holds at least, shared by all requests
PAGE = 64  # tokens of one page of the cache
BATCH_TOKENS = 512  # tokens of one forward pass: long prompts are read in pieces between other requests' tokens
BATCH_REQUESTS = 32


class PromptTooLong(Failure):
    """The prompt and the answer asked for do not fit into the context."""


class EngineStopped(TryAgain):
    """The request was lost with the engine, or came while it was closing."""


class Engine:
    """One model in memory and the thread that generates with it. Safe to use from several threads."""

    def __init__(
        self, reference: str, *, template: str | None = None, dtype: str = "fp32", threads: int | None = None
    ) -> None:
        """Load tokenizer, template and weights; `threads` is torch's, for the whole process. Raises Failure."""
        if threads:
            torch.set_num_threads(threads)
        self.name = reference
        self.tokenizer = load_tokenizer(reference)
        self.template = load_template(template, self.tokenizer)
        self._model = cast(Any, load_model(reference, dtype)).to("cuda" if torch.cuda.is_available() else "cpu")
        context = getattr(self._model.config.get_text_config(), "max_position_embeddings", None) or MAX_CONTEXT
        self.context: int = min(context, MAX_CONTEXT)
        self._stop_ids = sorted(self.template.stop_ids)
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._closed = False
        # Its errors reach the request; its log would print tracebacks.
        logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)
        self._start()
        atexit.register(self.close)

    def complete(
        self,
        messages: list[dict[str, Any]],
        *,
        max_tokens: int | None = None,
        temperature: float = 0.7,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: Iterable[str] = (),
    ) -> Answer:
        """The whole answer to a conversation; arguments and errors as for `stream`."""
        from vtools.inference.endpoint import Answer

        started = time.monotonic()
        stream = self.stream(
            messages, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=stop
        )
        text = "".join(stream)
        return Answer(
            text=text,
            finish=stream.finish or "stop",
            usage={"in": stream.usage["prompt_tokens"], "out": stream.usage["completion_tokens"]},
            model=self.name,
            ms=round((time.monotonic() - started) * 1000),
        )

    def stream(
        self,
        messages: list[dict[str, Any]],
        *,
        max_tokens: int | None = None,
        temperature: float = 0.7,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: Iterable[str] = (),
    ) -> Stream:
        """Start an answer and iterate over its text as it comes.

        `max_tokens` None means as many as fit. Temperature 0 takes the likeliest token each time; above it, the same
        seed draws the same numbers. Raises PromptTooLong (nothing is ever cut from a prompt), EngineStopped, and
        Reject("template_error") where the template refuses the conversation.
        """
        prompt = self.template.prompt(messages)
        room = self.context - len(prompt)
        if max_tokens is None:
            max_tokens = max(room, 1)
        if not 1 <= max_tokens <= room:
            raise PromptTooLong(
                f"the prompt has {len(prompt)} tokens and the answer may have {max_tokens}: "
                f"together more than the context of {self.context}"
            )
        name = str(next(self._numbers))
        mailbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        with self._lock:
            if self._closed:
                raise EngineStopped(f"{self.name}: the engine is closed")
            for _ in range(2):
                if not self._manager.is_running():
                    self._start()
                self._mailboxes[name] = mailbox
                taken = self._manager.add_request(
                    prompt,
                    request_id=name,
                    max_new_tokens=max_tokens,
                    streaming=True,
                    eos_token_id=self._stop_ids,
                    temperature=temperature,
                    top_p=top_p,
                    seed=secrets.randbits(63) if seed is None else seed,
                )
                if taken is not None:
                    break
                # Its thread has just died of another request; the next one starts afresh.
                del self._mailboxes[name]
                patience = time.monotonic() + 5
                while self._manager.is_running() and time.monotonic() < patience:
                    time.sleep(0.01)
            else:
                raise EngineStopped(f"{self.name}: the engine is stopping")
            cancel = _canceller(self._manager, self._mailboxes, name)
        stops = (*self.template.stop_strings, *stop)
        text = _Text(self.tokenizer.decode, stops)
        return Stream(mailbox, cancel, text, len(prompt), frozenset(self._stop_ids))

    def close(self) -> None:
        """Stop generating; what is still running ends in EngineStopped."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        atexit.unregister(self.close)
        self._manager.stop(block=True, hard_stop=True)
        self._delivery.join()  # a thread that frees tensors while Python shuts down aborts the process

    def _start(self) -> None:
        """Start generating, at first or after the generating thread has died of an error."""
        pages = -(-max(self.context, CACHE) // PAGE) + 2
        # The name of the page's size changed between transformers 5.17 and 5.23.
        fields = ContinuousBatchingConfig.__dataclass_fields__
        size: dict[str, Any] = {"page_size" if "page_size" in fields else "block_size": PAGE}
        self._manager = self._model.init_continuous_batching(
            generation_config=GenerationConfig(do_sample=False, eos_token_id=self._stop_ids or -1),
            continuous_batching_config=ContinuousBatchingConfig(
                num_blocks=pages,
                max_batch_tokens=BATCH_TOKENS,
                max_requests_per_batch=BATCH_REQUESTS,
                # Tokens are chosen in Python, step by step, which neither a graph nor a second batch in flight allows.
                use_cuda_graph=False,
                use_async_batching=False,
                **size,
            ),
        )
        self._manager.logit_processor = _Sampler()
        self._mailboxes: dict[str, queue.SimpleQueue[Any]] = {}
        started = threading.Event()
        arguments = (self._manager, self._mailboxes, started)
        self._delivery = threading.Thread(target=self._deliver, args=arguments, daemon=True, name="deliver")
        self._delivery.start()
        started.wait()

    def _deliver(self, manager: Any, mailboxes: dict[str, queue.SimpleQueue[Any]], started: threading.Event) -> None:
        manager.start()  # here, because a thread inherits being a daemon from the one that starts it
        started.set()
        while manager.is_running():
            output = manager.get_result(timeout=0.1)
            if output is None:
                # A full cache lets nobody in until a request finishes; one that is cancelled instead goes unnoticed.
                processor = manager.batch_processor
                if processor is not None and not processor.scheduler.active_requests:
                    processor.scheduler.block_new_requests = False
            elif mailbox := mailboxes.get(output.request_id):
                mailbox.put(output)
            elif not output.is_finished():  # cancelled while it was being accepted, which is missed too
                manager.cancel_request(output.request_id)
        with self._lock:
            reason = manager.background_thread_status.fatal_error or "the engine was closed"
            for mailbox in mailboxes.values():
                mailbox.put(EngineStopped(f"{self.name}: generation stopped: {reason}"))


def _canceller(manager: Any, mailboxes: dict[str, queue.SimpleQueue[Any]], name: str) -> Callable[[bool], None]:
    """What ends a request; it refers to the request's own manager, which may have been replaced meanwhile."""

    def end(running: bool) -> None:
        mailboxes.pop(name, None)
        if running:
            manager.cancel_request(name)

    return end


class Stream:
    """The text of one answer in pieces. `finish` is "stop" or "length" once the answer has ended, None before.

    Closing it, from any thread, stops the generation and the iteration.
    """

    def __init__(
        self,
        mailbox: queue.SimpleQueue[Any],
        end: Callable[[bool], None],
        text: _Text,
        prompt_tokens: int,
        stop_ids: frozenset[int],
    ) -> None:
        self.finish: str | None = None
        self.usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 0}
        self._mailbox, self._end, self._text, self._stop_ids = mailbox, end, text, stop_ids
        self._ended = False

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> str:
        while not self._ended:
            output = self._mailbox.get()
            if output is None:
                break
            if isinstance(output, EngineStopped) or output.error is not None:
                self.close()
                raise output if isinstance(output, EngineStopped) else EngineStopped(str(output.error))
            done = self.usage["completion_tokens"]
            new = output.generated_tokens[done:]  # the list holds all tokens from the first on
            self.usage["completion_tokens"] += len(new)
            last = output.is_finished()
            stopped = last and bool(new) and new[-1] in self._stop_ids
            piece = self._text.push(new[:-1] if stopped else new, last)
            if self._text.stopped or last:
                self.finish = "stop" if stopped or self._text.stopped else "length"
                self._ended = True
                self._end(not last)
            if piece:
                return piece
        raise StopIteration

    def close(self) -> None:
        """Stop the generation; harmless when it has ended."""
        if not self._ended:
            self._ended = True
            self._end(True)
            self._mailbox.put(None)

    __del__ = close


class _Text:
    """Token ids to text in pieces: whole characters, and nothing that may become a stop string."""

    def __init__(self, decode: Callable[[list[int]], str], stops: Iterable[str]) -> None:
        self.stopped = False
        self._decode, self._stops = decode, tuple(stops)
        self._ids: list[int] = []
        self._start = self._read = 0
        self._held = ""

    def push(self, ids: list[int], last: bool) -> str:
        """Take new ids, return the text that is now certain; `last` gives everything away."""
        self._held += self._characters(ids, last)
        found = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._held[: min(found)]
        keep = 0 if last else max((_overlap(self._held, stop) for stop in self._stops), default=0)
        piece, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return piece

    def _characters(self, ids: list[int], last: bool) -> str:
        # A token's text depends on the tokens before it (spaces, bytes of one character), so a few are decoded again.
        self._ids += ids
        before = self._decode(self._ids[self._start : self._read])
        text = self._decode(self._ids[self._start :])
        if text.endswith("\ufffd") and not last:
            return ""
        self._start, self._read = self._read, len(self._ids)
        return text[len(before) :]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text that the stop string begins with."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)


class _Sampler(ContinuousBatchingLogitsProcessorList):
    """Chooses each request's next token by its own temperature, top_p and seed, and makes it the largest score.

    The library's own sampling knows one seed for all requests. A draw here depends on the request's seed and the
    token's position alone, so an answer does not depend on who else is being served.
    """

    def __init__(self) -> None:
        from transformers import LogitsProcessorList

        super().__init__(LogitsProcessorList())
        self.do_processing = True
        self._rows: list[Any] = []

    def check_kwargs(self, kwargs: dict[str, Any]) -> None:
        pass

    def prepare_tensor_args(self, requests_in_batch: list[Any], arg_storage: torch.Tensor) -> torch.Tensor:
        self._rows = [request.state for request in requests_in_batch if request.has_new_token]
        return arg_storage

    def __call__(self, input_ids: Any, scores: torch.Tensor, logits_processor_args: Any) -> torch.Tensor:
        """`scores` are float32 logits, (requests, vocabulary)."""
        for row, state in enumerate(self._rows):
            options = state.logit_processor_kwargs
            if options["temperature"] > 0:
                # Both lists count: under pressure tokens already generated become part of the prompt.
                position = len(state.initial_tokens) + len(state.generated_tokens)
                uniform = random.Random(f"{options['seed']}/{position}").random()
                token = draw(scores[row], options["temperature"], options["top_p"], uniform)
                scores[row] = float("-inf")
                scores[row, token] = 0.0
        return scores


def draw(scores: torch.Tensor, temperature: float, top_p: float, uniform: float) -> int:
    """The token at `uniform` (0 to 1) of the distribution of these logits, cut to its nucleus of mass `top_p`.

    Nucleus sampling: Holtzman et al. 2020, arXiv 1904.09751.
    """
    probabilities = torch.softmax(scores.double() / temperature, dim=-1)
    order = None
    if top_p < 1:
        probabilities, order = probabilities.sort(descending=True, stable=True)
        before = probabilities.cumsum(0)[:-1]
        probabilities[1:][before >= top_p] = 0  # the first always stays
    cumulative = probabilities.cumsum(0)
    index = int(torch.searchsorted(cumulative, uniform * float(cumulative[-1]), right=True))
    index = min(index, len(cumulative) - 1)
    return int(order[index]) if order is not None else index
