# ruff: noqa: TID253  imports torch at once: import this module inside a function
"""Token generation with one local model: many requests at a time, streamed, for serve, chat and judge.

Generation is transformers' continuous batching. This module adds what it lacks: templates, stop strings, a seed and
temperature per request, admission control (a request that cannot fit would end its thread for all), and restarts.
"""

import atexit
import itertools
import logging
import queue
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any, Self, cast

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from vtools.inference.client import TOKENS, Answer, Messages, Sampling
from vtools.inference.detokenize import Detokenizer
from vtools.inference.sampling import Sampler
from vtools.models.configs import context_limit
from vtools.models.load import load_model
from vtools.models.template import is_continued, load_template
from vtools.models.tokenizer import load_tokenizer
from vtools.process import Failure, TryAgain

MAX_CONTEXT = 16384  # tokens per request, whatever the model supports: the KV cache must hold them
CACHE = 8192  # minimum tokens in the KV cache, shared by all requests
PAGE = 64  # tokens per page of the cache
BATCH_TOKENS = 512  # tokens per forward pass: long prompts are prefilled in chunks between other requests' tokens
BATCH_REQUESTS = 32
BEFORE = 16  # tokens of a continued text that are decoded with what follows, on which its spaces depend


class PromptTooLong(Failure):
    """The prompt leaves no token of the context for an answer."""


class AnswerTooLong(Failure):
    """The prompt fits into the context, but not together with the requested answer."""


class EngineStopped(TryAgain):
    """The request was lost with the engine, or arrived while it was closing."""


class Engine:
    """One model in memory and the thread that generates with it. Thread-safe."""

    def __init__(
        self,
        reference: str,
        *,
        template: str | None = None,
        system: str | None = None,
        dtype: str = "fp32",
        threads: int | None = None,
        clamp: bool = False,
    ) -> None:
        """Load tokenizer, template and weights; `threads` sets torch's threads in this process. Raises Failure.

        With `clamp`, an answer that may be longer than the context allows ends there instead of being refused.
        """
        if threads:
            torch.set_num_threads(threads)
        self.name, self._clamp = reference, clamp
        self.tokenizer = load_tokenizer(reference)
        self.template = load_template(template, self.tokenizer, system)
        self._model = cast(Any, load_model(reference, dtype)).to("cuda" if torch.cuda.is_available() else "cpu")
        context = context_limit(self._model.config.get_text_config().to_dict()) or MAX_CONTEXT
        self.context: int = min(context, MAX_CONTEXT)
        self._stop_ids = sorted(self.template.stop_ids)
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._closed = False
        # Errors reach the request anyway; the library's log would print tracebacks.
        logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)
        self._start()
        atexit.register(self.close)

    def complete(self, messages: Messages, sampling: Sampling) -> Answer:
        """The whole answer to a conversation; errors as for `stream`."""
        started = time.monotonic()
        stream = self.stream(messages, sampling)
        text = "".join(stream)
        usage = {ours: stream.usage[theirs] for ours, theirs in TOKENS.items()}
        return Answer(text, stream.finish or "stop", usage, self.name, round((time.monotonic() - started) * 1000))

    def stream(self, messages: Messages, sampling: Sampling) -> "Stream":
        """Start an answer and iterate over its text as it comes; an assistant message at the end is continued.

        Raises PromptTooLong (nothing is ever cut from a prompt), AnswerTooLong, EngineStopped, and
        Reject("template_error") where the template refuses the conversation.
        """
        prompt = self.template.prompt(messages)
        max_tokens = self._limit(len(prompt), sampling.max_tokens)
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
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    seed=secrets.randbits(63) if sampling.seed is None else sampling.seed,
                )
                if taken is not None:
                    break
                # The thread died of another request; the next request restarts it.
                del self._mailboxes[name]
                patience = time.monotonic() + 5
                while self._manager.is_running() and time.monotonic() < patience:
                    time.sleep(0.01)
            else:
                raise EngineStopped(f"{self.name}: the engine is stopping")
            cancel = _canceller(self._manager, self._mailboxes, name)
        stops = (*self.template.stop_strings, *sampling.stop)
        continued = is_continued(messages)
        lead, before = ("", prompt[-BEFORE:]) if continued else (self.template.answer_lead, [])
        text = Detokenizer(self.tokenizer.decode, stops, lead, before)
        return Stream(mailbox, cancel, text, len(prompt), frozenset(self._stop_ids))

    def _limit(self, prompt: int, wanted: int | None) -> int:
        """How many tokens an answer may have after a prompt of this many. Raises PromptTooLong, AnswerTooLong."""
        available = self.context - prompt
        if available < 1:
            raise PromptTooLong(
                f"the prompt has {prompt} tokens and the context {self.context}: no space for an answer"
            )
        if wanted is None or self._clamp:
            return min(wanted or available, available)
        if wanted > available:
            raise AnswerTooLong(
                f"max_tokens is {wanted}, and the prompt of {prompt} tokens leaves {available} of the context of"
                f" {self.context}: lower max_tokens, or leave it out"
            )
        return wanted

    def close(self) -> None:
        """Stop generating; running requests end in EngineStopped."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        atexit.unregister(self.close)
        self._manager.stop(block=True, hard_stop=True)
        self._delivery.join()  # a thread that frees tensors while Python shuts down aborts the process

    def _start(self) -> None:
        """Start the generating thread, also after it died of an error."""
        pages = -(-max(self.context, CACHE) // PAGE) + 2
        # The parameter for the page size was renamed between transformers 5.17 and 5.23.
        fields = ContinuousBatchingConfig.__dataclass_fields__
        size: dict[str, Any] = {"page_size" if "page_size" in fields else "block_size": PAGE}
        self._manager = self._model.init_continuous_batching(
            generation_config=GenerationConfig(do_sample=False, eos_token_id=self._stop_ids or -1),
            continuous_batching_config=ContinuousBatchingConfig(
                num_blocks=pages,
                max_batch_tokens=BATCH_TOKENS,
                max_requests_per_batch=BATCH_REQUESTS,
                # Sampling is in Python, step by step: no CUDA graphs, no second batch in flight.
                use_cuda_graph=False,
                use_async_batching=False,
                **size,
            ),
        )
        self._manager.logit_processor = Sampler()
        self._mailboxes: dict[str, queue.SimpleQueue[Any]] = {}
        started = threading.Event()
        arguments = (self._manager, self._mailboxes, started)
        self._delivery = threading.Thread(target=self._deliver, args=arguments, daemon=True, name="deliver")
        self._delivery.start()
        started.wait()

    def _deliver(self, manager: Any, mailboxes: dict[str, queue.SimpleQueue[Any]], started: threading.Event) -> None:
        manager.start()  # here, because a thread inherits daemon status from its parent thread
        started.set()
        while manager.is_running():
            output = manager.get_result(timeout=0.1)
            if output is None:
                # A full cache admits nothing until a request finishes; a cancelled request goes unnoticed.
                processor = manager.batch_processor
                if processor is not None and not processor.scheduler.active_requests:
                    processor.scheduler.block_new_requests = False
            elif mailbox := mailboxes.get(output.request_id):
                mailbox.put(output)
            elif not output.is_finished():  # cancelled while being admitted, which goes unnoticed too
                manager.cancel_request(output.request_id)
        with self._lock:
            reason = manager.background_thread_status.fatal_error or "the engine was closed"
            for mailbox in mailboxes.values():
                mailbox.put(EngineStopped(f"{self.name}: generation stopped: {reason}"))


def _canceller(manager: Any, mailboxes: dict[str, queue.SimpleQueue[Any]], name: str) -> Callable[[bool], None]:
    """A function that ends a request, at its own manager (the engine's may have been replaced since)."""

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
        text: Detokenizer,
        prompt_tokens: int,
        stop_ids: frozenset[int],
    ) -> None:
        self.finish: str | None = None
        self.usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 0}
        self._mailbox, self._end, self._text, self._stop_ids = mailbox, end, text, stop_ids
        self._ended = False

    def __iter__(self) -> Self:
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
            new = output.generated_tokens[done:]  # the list has all tokens from the first on
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
        """Stop the generation, if it has not ended."""
        if not self._ended:
            self._ended = True
            self._end(True)
            self._mailbox.put(None)

    __del__ = close
