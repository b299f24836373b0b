"""What a run would take: its calls, tokens, dollars and minutes."""

from collections.abc import Sequence

from vtools.inference import batch_store
from vtools.inference.client import Messages, Sampling
from vtools.inference.connect import Target
from vtools.inference.progress import lasting
from vtools.process import UsageFailure
from vtools.records import prices

BYTES_PER_TOKEN = 4  # of English; most other languages have fewer
TOKENS_PER_SECOND = 50  # of one answer, where no earlier one says how long they take


class Forecast:
    """Counts the calls of one model. Tokens in are estimated from the bytes of the prompts; those out are the most
    allowed."""

    def __init__(self, target: Target, sampling: Sampling) -> None:
        """Raises Failure if the prices lack the model."""
        if target.prices and not target.model:
            raise UsageFailure("--prices needs --model in a dry run")
        self.price, self.batch = None, target.batch
        if target.prices:
            listed = prices.read(target.prices)
            self.price = (listed.batch_tokens if self.batch else listed.tokens)(str(target.model))
        self.limit, self.most = target.max_usd, sampling.max_tokens
        self.calls = self._bytes = self._answers = 0

    def add(self, messages: Messages, before: int = 0) -> None:
        """Count a call with these messages and so many answers of the same run in its prompt."""
        self.calls += 1
        self._answers += before
        self._bytes += sum(len(message["content"].encode("utf-8", "replace")) for message in messages)

    @property
    def tokens(self) -> tuple[int, int]:
        """Tokens in and out; without a limit of those out, none are counted."""
        return self._bytes // BYTES_PER_TOKEN + self._answers * (self.most or 0), self.calls * (self.most or 0)

    @property
    def dollars(self) -> float | None:
        """What they cost, if the price is known."""
        if self.price is None:
            return None
        return sum(count * price for count, price in zip(self.tokens, self.price, strict=True)) / 1e6


def parts(forecasts: Sequence[Forecast], jobs: int | None = None, times: Sequence[int] = ()) -> list[str]:
    """The sums of some models that are asked the same way, each in words.

    With the number of `jobs`, the limit and the time too; `times` are the milliseconds of earlier answers.
    """
    most, batch = forecasts[0].most, forecasts[0].batch
    limit = next((forecast.limit for forecast in forecasts if forecast.limit is not None), None)
    calls = sum(forecast.calls for forecast in forecasts)
    tokens_in, tokens_out = (sum(column) for column in zip(*(each.tokens for each in forecasts), strict=True))
    about = f"about {tokens_in:,} tokens in ({BYTES_PER_TOKEN} bytes each)"
    if most is None:
        return [f"{about} and out as many as the server allows: --max-tokens limits that, the cost and the time"]
    found = [f"{about} and at most {tokens_out:,} out, without retries"]
    costs = [forecast.dollars for forecast in forecasts if forecast.dollars is not None]
    if costs:
        over = f", more than --max-usd {limit:g}" if jobs and limit is not None and sum(costs) > limit else ""
        found.append(f"at most {sum(costs):.2f} USD{' by batch' if batch else ''}{over}")
    if batch:
        found.append("within 24 hours, and as long again for what follows from a reply")
        if noted := batch_store.noted(batch):
            found.append(f"{noted} requests are answered or on their way already ({batch_store.folder(batch)})")
    elif jobs and times:
        each = sum(times) / len(times) / 1000
        found.append(f"about {lasting(-(-calls // jobs) * each)} at -j {jobs}, as earlier ones took {each:.1f} s each")
    elif jobs:
        wall = lasting(-(-calls // jobs) * most / TOKENS_PER_SECOND)
        found.append(f"at most {wall} at -j {jobs} and {TOKENS_PER_SECOND} tokens/s")
    return found
