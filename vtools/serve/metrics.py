# ruff: noqa: TID253  imported by the edge alone
"""What the edge counts, as Prometheus reads it."""

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Counters by model; all start at zero, so that a first change is seen."""

    def __init__(self, models: list[str]) -> None:
        registry = self._registry = CollectorRegistry()
        named = ("model",)
        self.requests = Counter("vtools_requests", "Requests by status.", (*named, "status"), registry=registry)
        self.tokens = Counter("vtools_tokens", "Tokens of prompts and answers.", (*named, "kind"), registry=registry)
        self.first = Histogram(
            "vtools_first_token_seconds", "From request to first token.", named, registry=registry, buckets=_SECONDS
        )
        self.between = Histogram(
            "vtools_inter_token_seconds", "Between two pieces.", named, registry=registry, buckets=_SECONDS
        )
        self.in_flight = Gauge("vtools_requests_in_flight", "Requests that run or wait.", named, registry=registry)
        self.waiting = Gauge("vtools_requests_waiting", "Requests without a token yet.", named, registry=registry)
        self.resumes = Counter(
            "vtools_resume", "Answers that another worker went on with, by reason.", (*named, "reason"),
            registry=registry,
        )  # fmt: skip
        self.stalls = Counter("vtools_stall", "Workers that fell silent during an answer.", named, registry=registry)
        self.restarts = Counter("vtools_worker_restart", "Workers started again.", named, registry=registry)
        self.workers = Gauge("vtools_workers", "Workers that are up.", named, registry=registry)
        for model in models:
            for each in (self.first, self.between, self.in_flight, self.waiting, self.stalls, self.restarts):
                each.labels(model)
            self.workers.labels(model)
            for kind in ("prompt", "completion"):
                self.tokens.labels(model, kind)
            for reason in ("connect", "lost", "stall"):
                self.resumes.labels(model, reason)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)
