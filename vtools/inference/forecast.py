"""What a run would take: its calls, tokens, dollars and minutes."""

from vtools.inference import batch_store
from vtools.inference.client import Messages, Sampling
from vtools.inference.connect import Target
from vtools.inference.progress import lasting
from vtools.process import UsageFailure
from vtools.records import prices

BYTES_PER_TOKEN = 4  # of English; most other languages have fewer
TOKENS_PER_SECOND = 50  # of one answer, where no earlier one says how long they take


class Forecast:
    """Counts calls. Their tokens in are estimated from the bytes of the prompts; those out are the most allowed."""

    def __init__(self, target: Target, sampling: Sampling, jobs: int, times: list[int]) -> None:
        """`times` are the milliseconds of earlier answers. Raises Failure if the prices lack the model."""
        if target.prices and not target.model:
            raise UsageFailure("--prices needs --model in a dry run")
        self._price, self._batch = None, target.batch
        if target.prices:
            listed = prices.read(target.prices)
            self._price = (listed.batch_tokens if self._batch else listed.tokens)(str(target.model))
        self._limit = target.max_usd
        self._most, self._jobs, self._times = sampling.max_tokens, jobs, times
        self.calls = self._bytes = self._answers = 0

    def add(self, messages: Messages, before: int = 0) -> None:
        """Count a call with these messages and so many answers of the same run in its prompt."""
        self.calls += 1
        self._answers += before
        self._bytes += sum(len(message["content"].encode("utf-8", "replace")) for message in messages)

    def parts(self) -> list[str]:
        """The sums, each in words."""
        most = self._most
        tokens_in = self._bytes // BYTES_PER_TOKEN + self._answers * (most or 0)
        about = f"about {tokens_in:,} tokens in ({BYTES_PER_TOKEN} bytes each)"
        if most is None:
            return [f"{about} and out as many as the server allows: --max-tokens limits that, the cost and the time"]
        found = [f"{about} and at most {self.calls * most:,} out, without retries"]
        if self._price:
            dollars = (tokens_in * self._price[0] + self.calls * most * self._price[1]) / 1e6
            over = f", more than --max-usd {self._limit:g}" if self._limit is not None and dollars > self._limit else ""
            found.append(f"at most {dollars:.2f} USD{' by batch' if self._batch else ''}{over}")
        if self._batch:
            found.append("within 24 hours, and as long again for what follows from a reply")
            if noted := batch_store.noted(self._batch):
                found.append(
                    f"{noted} requests are answered or on their way already ({batch_store.folder(self._batch)})"
                )
        elif self._times:
            each = sum(self._times) / len(self._times) / 1000
            found.append(f"about {self._wall(each)} at -j {self._jobs}, as earlier ones took {each:.1f} s each")
        else:
            each = most / TOKENS_PER_SECOND
            found.append(f"at most {self._wall(each)} at -j {self._jobs} and {TOKENS_PER_SECOND} tokens/s")
        return found

    def _wall(self, each: float) -> str:
        return lasting(-(-self.calls // self._jobs) * each)
