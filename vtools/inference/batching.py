# ruff: noqa: TID253  imports torch at once: import this module inside a function
"""transformers' continuous batching, which is private API: the only module that knows it.

It generates for many requests at a time in a thread of its own. Added are what it lacks: sampling, seed and
log-probabilities per request, attention that does not grow with the square of the requests, and wake-ups.
"""

import inspect
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import transformers
from transformers import ContinuousBatchingConfig, GenerationConfig, LogitsProcessorList

from vtools.inference import sampling
from vtools.inference.client import Sampling, Token
from vtools.process import Failure

TESTED = "5.17 to 5.23"  # versions of transformers
PAGE = 64  # tokens per page of the cache
BATCH_TOKENS = 512  # tokens per forward pass: long prompts are prefilled in chunks between other requests' tokens


START = 120.0  # seconds for allocating the cache


class Got(NamedTuple):
    """A request's tokens so far, all of them; whether they are the last, and the error that ended them."""

    ids: list[int]
    last: bool
    error: str | None


class Request:
    """What arrives for one request: `mailbox` has a `Got` per token, None once it is closed, a text if all was lost.

    `logprobs` has each token with its own, by its position in the sequence of prompt and answer; None unless asked for.
    """

    def __init__(self, wanted: int | None) -> None:
        self.mailbox: queue.SimpleQueue[Got | str | None] = queue.SimpleQueue()
        self.logprobs: dict[int, Token] | None = None if wanted is None else {}


def _unlike(what: object) -> Failure:
    return Failure(
        f"transformers {transformers.__version__}: its continuous batching is not that of {TESTED} ({what});"
        f" install a version from {TESTED}"
    )


try:
    from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList
    from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager, OutputRouter

    from vtools.inference import paged_attention
except (ImportError, AttributeError) as error:
    raise _unlike(error) from None


def probe() -> None:
    """Raise Failure unless the library has what is used here."""
    used: dict[Callable[..., Any], str] = {
        ContinuousBatchingManager.add_request: "request_id max_new_tokens streaming logit_processor_kwargs",
        ContinuousBatchingManager.stop: "block hard_stop",
        ContinuousBatchingManager.cancel_request: "request_id",
        ContinuousBatchingConfig: "num_blocks max_batch_tokens max_requests_per_batch",
        OutputRouter.deliver: "output",
        OutputRouter.deliver_batch: "outputs",
        ContinuousBatchingLogitsProcessorList.check_kwargs: "kwargs",
        ContinuousBatchingLogitsProcessorList.prepare_tensor_args: "requests_in_batch arg_storage",
        ContinuousBatchingLogitsProcessorList.__call__: "input_ids scores logits_processor_args",
    }
    for function, names in used.items():
        missing = set(names.split()) - set(inspect.signature(function).parameters)
        if missing:
            raise _unlike(f"{function.__qualname__} has no {', '.join(sorted(missing))}")


class Batching:
    """One run of the library's generating thread; after an error in it, all requests are lost and another is needed."""

    def __init__(self, model: Any, *, pages: int, requests: int, stop_ids: list[int]) -> None:
        """`pages` of the cache, shared by at most `requests` at a time. Raises Failure if it cannot start."""
        # Errors reach the request anyway; the library's log would print tracebacks.
        logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)
        probe()
        self._requests: dict[str, Request] = {}
        self._lock = threading.Lock()
        self._ended = False
        self._closing = threading.Event()
        own_attention = model.device.type == "cpu" and _is_plain(model.config.get_text_config())
        try:
            self._manager = _manager(model, pages, requests, stop_ids, own_attention)
            self._sampler = self._manager.logit_processor = _Sampler(self._requests)
            self._manager.output_router = _Router(self._requests, self._manager.cancel_request)
            started = threading.Event()
            self._watcher = threading.Thread(target=self._watch, args=(started,), daemon=True, name="watch")
            self._watcher.start()
            started.wait()
            patience = time.monotonic() + START
            while self._manager.batch_processor is None and self.running and time.monotonic() < patience:
                time.sleep(0.001)
            if self._manager.batch_processor is None:
                raise Failure(f"{model.name_or_path}: generation does not start: {self._reason()}")
            self.idle()
        except (AttributeError, TypeError) as error:
            raise _unlike(error) from None

    @property
    def running(self) -> bool:
        """Whether the generating thread lives."""
        return self._manager.is_running()

    @property
    def stepped(self) -> float:
        """When the last forward pass began, by the monotonic clock."""
        return self._sampler.stepped

    def idle(self) -> bool:
        """Whether no request is open or computed."""
        return not self._requests and not self._manager.batch_processor.has_pending_requests()

    def add(self, name: str, prompt: list[int], sampling: Sampling, most: int, seed: int) -> Request | None:
        """Start a request of at most `most` tokens; None if the thread is stopping."""
        request = Request(sampling.logprobs)
        with self._lock:
            if self._ended:
                return None
            self._requests[name] = request
            taken = self._manager.add_request(
                prompt,
                request_id=name,
                max_new_tokens=most,
                streaming=True,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=seed,
                logprobs=sampling.logprobs,
            )
            if taken is None:
                del self._requests[name]
                return None
        return request

    def end(self, name: str, running: bool) -> None:
        """Forget a request, and stop it if it is still `running`."""
        if self._requests.pop(name, None) is not None and running:
            self._manager.cancel_request(name)

    def close(self) -> None:
        """Stop generating; open requests are told."""
        self._manager.stop(block=True, hard_stop=True)
        self._closing.set()
        self._watcher.join()  # a thread that frees tensors while Python shuts down aborts the process

    def _watch(self, started: threading.Event) -> None:
        try:
            self._manager.start()  # here, because a thread inherits daemon status from its parent thread
        finally:
            started.set()
        while self.running and not self._closing.wait(0.1):
            # A full cache admits nothing until a request finishes; a cancelled request goes unnoticed.
            processor = self._manager.batch_processor
            if processor is not None and not processor.scheduler.active_requests:
                processor.scheduler.block_new_requests = False
        with self._lock:
            self._ended = True
            for request in list(self._requests.values()):  # those that are told end at once
                request.mailbox.put(self._reason())

    def _reason(self) -> str:
        return str(self._manager.background_thread_status.fatal_error or "the engine was closed")


def _is_plain(config: Any) -> bool:
    """Whether every layer attends to all earlier tokens."""
    kinds = getattr(config, "layer_types", None)
    if config._attn_implementation not in ("sdpa", paged_attention.NAME):
        return False
    return set(kinds) == {"full_attention"} if kinds else not getattr(config, "sliding_window", None)


def _manager(model: Any, pages: int, requests: int, stop_ids: list[int], own_attention: bool) -> Any:
    # The parameter for the page size was renamed between transformers 5.17 and 5.23.
    fields = ContinuousBatchingConfig.__dataclass_fields__
    size: dict[str, Any] = {"page_size" if "page_size" in fields else "block_size": PAGE}
    if own_attention:
        model.set_attn_implementation("sdpa")  # the only one that the manager takes
    manager = model.init_continuous_batching(
        generation_config=GenerationConfig(do_sample=False, eos_token_id=stop_ids or -1),
        continuous_batching_config=ContinuousBatchingConfig(
            num_blocks=pages,
            max_batch_tokens=BATCH_TOKENS,
            max_requests_per_batch=min(requests, BATCH_TOKENS),
            # Sampling is in Python, step by step: no CUDA graphs, no second batch in flight.
            use_cuda_graph=False,
            use_async_batching=False,
            **size,
        ),
    )
    if own_attention:
        model.set_attn_implementation(paged_attention.NAME)
    return manager


class _Router(OutputRouter):
    """Puts each output into its request's mailbox: no thread in between, which would take the generating one's turn."""

    def __init__(self, requests: dict[str, Request], cancel: Any) -> None:
        super().__init__()
        self._requests, self._cancel = requests, cancel

    def deliver(self, output: Any) -> None:
        request = self._requests.get(output.request_id)
        if request is not None:
            request.mailbox.put(Got(output.generated_tokens, output.is_finished(), output.error))
        elif not output.is_finished():  # cancelled while being admitted, which goes unnoticed
            self._cancel(output.request_id)

    def deliver_batch(self, outputs: list[Any]) -> None:
        for output in outputs:
            self.deliver(output)


class _Sampler(ContinuousBatchingLogitsProcessorList):
    """Draws each request's next token by its own sampling and gives it the largest score; a greedy one has it already.

    The library has one temperature and one seed for all requests. Here a draw depends only on the request's seed and
    the token's position, so an answer does not depend on other requests, and another process can go on with it.
    """

    def __init__(self, requests: dict[str, Request]) -> None:
        super().__init__(LogitsProcessorList())
        self.do_processing = True
        self._requests = requests
        self._states: list[Any] = []
        self.stepped = 0.0

    def check_kwargs(self, kwargs: dict[str, Any]) -> None:
        pass

    def prepare_tensor_args(self, requests_in_batch: list[Any], arg_storage: torch.Tensor) -> torch.Tensor:
        self.stepped = time.monotonic()  # of every batch, also of one that only reads prompts
        self._states = [request.state for request in requests_in_batch if request.has_new_token]
        return arg_storage

    @torch.inference_mode()
    def __call__(self, input_ids: Any, scores: torch.Tensor, logits_processor_args: Any) -> torch.Tensor:
        """`scores` are float32 logits, (requests, vocabulary)."""
        options = [state.logit_processor_kwargs for state in self._states]
        sampled = [row for row, option in enumerate(options) if option["temperature"] > 0]
        asked = [row for row, option in enumerate(options) if option["logprobs"] is not None]
        if not sampled and not asked:
            return scores
        # Count both lists: under memory pressure generated tokens become part of the prompt.
        positions = [len(state.initial_tokens) + len(state.generated_tokens) for state in self._states]
        if sampled:
            whole = [(row, options[row]["seed"], positions[row]) for row in sampled]
            rows, seeds, places = torch.tensor(whole, device=scores.device).unbind(1)
            floats = [(options[row]["temperature"], options[row]["top_p"]) for row in sampled]
            temperatures, top_ps = torch.tensor(floats, dtype=torch.float32, device=scores.device).unbind(1)
            tokens = sampling.draw(scores[rows], temperatures, top_ps, sampling.uniform(seeds, places))
        if asked:
            chosen = scores.argmax(-1)
            if sampled:
                chosen[rows] = tokens
            self._keep_logprobs(asked, positions, scores[asked], chosen[asked])
        if sampled:
            scores[rows, tokens] = torch.inf
        return scores

    def _keep_logprobs(self, rows: list[int], positions: list[int], scores: torch.Tensor, chosen: torch.Tensor) -> None:
        wanted = [self._states[row].logit_processor_kwargs["logprobs"] for row in rows]
        logs, ids, values = sampling.log_probabilities(scores, chosen, max(wanted))
        tokens = chosen.tolist()
        for place, row in enumerate(rows):
            request = self._requests.get(self._states[row].request_id)
            if request is not None and request.logprobs is not None:
                top = dict(zip(ids[place][: wanted[place]], values[place], strict=False))
                request.logprobs[positions[row]] = Token(tokens[place], logs[place], top)
