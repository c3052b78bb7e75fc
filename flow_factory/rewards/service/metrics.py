"""The metrics of the service for Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

PREFIX = "ff_reward"
SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The metrics of one service. Each has its own registry, so a process may have several services."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def named(kind: type, name: str, text: str, labels: tuple[str, ...] = (), **options: object):  # type: ignore[no-untyped-def]
            return kind(f"{PREFIX}_{name}", text, labels, registry=self.registry, **options)

        self.requests = named(Counter, "requests", "Requests that were answered", ("reward", "status"))
        self.samples = named(Counter, "samples", "Samples that were scored", ("reward",))
        self.missing = named(Counter, "missing", "Samples without a score", ("reward",))
        self.repeated = named(Counter, "repeated", "Requests that were answered from memory, or by the answer to an earlier one")
        self.seconds = named(Histogram, "batch_seconds", "Seconds of a batch", ("reward",), buckets=SECONDS)
        self.sizes = named(Histogram, "batch_samples", "Samples of a batch", ("reward",), buckets=SAMPLES)
        self.workers = named(Gauge, "workers", "Workers that are ready")
        self.queued = named(Gauge, "queue_requests", "Requests whose scoring has not begun")
        self.bytes = named(Gauge, "queue_bytes", "Bytes of their bodies")

    def watch(self, requests: Callable[[], int], sizes: Callable[[], int]) -> None:
        """Sets the number of waiting requests, and their bytes."""
        self.queued.set_function(requests)
        self.bytes.set_function(sizes)

    def batch(self, reward: str, samples: int, seconds: float) -> None:
        self.sizes.labels(reward).observe(samples)
        self.seconds.labels(reward).observe(seconds)

    def answered(self, reward: str, status: int, scores: list[float | None]) -> None:
        self.requests.labels(reward, status).inc()
        self.samples.labels(reward).inc(len(scores))
        self.missing.labels(reward).inc(scores.count(None))

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)
