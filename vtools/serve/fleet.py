"""The workers that have joined an edge, by their leases: vetted, routed to, drained, forgotten.

Nothing of it is kept: an edge that starts again learns all of it from the next leases.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vtools.inference.identity import fingerprint
from vtools.models.template import Template
from vtools.process import say
from vtools.serve import vetting
from vtools.serve.lease import LIFE, Lease
from vtools.serve.metrics import Metrics
from vtools.serve.upstream import RESTART, Model, Worker
from vtools.serve.worker_url import Policy

SWEEP = 0.5  # seconds between looks for leases that have expired
AGAIN = (0.0, 2.0, 5.0, 10.0, 30.0)  # seconds until a refused worker is looked at again, by refusals in a row
SHOWN = 60.0  # seconds for which an expired lease, or one that was no lease, is shown with its reason
STRANGERS = 100  # of those that are shown
RETIRE = 1.0  # seconds for requests that have chosen a worker of the old weights to reach it
Catalog = dict[str, tuple[Model, Template]]


@dataclass(eq=False)
class Member:
    """A worker that says it is there."""

    lease: Lease
    peer: str  # the address that its leases come from
    seen: float
    state: str = "checking"  # ready, refused, expired
    reason: str = ""
    refusals: int = 0
    again: float = 0.0  # when a refused one is looked at again
    leaving: bool = False  # it was asked to drain
    worker: Worker | None = None
    model: Model | None = None

    @property
    def name(self) -> str:
        """By which it can be drained."""
        return self.worker.name if self.worker else f"{self.lease.model}@{self.lease.url.partition('://')[2]}"


@dataclass(eq=False)
class Version:
    """A model with these weights and this template; `swap` is when it was to replace others."""

    model: Model
    template: Template
    swap: float = 0.0
    tops: vetting.Tops | None = None
    own: bool = False  # of this edge's own workers

    def served(self) -> dict[str, Any]:
        """As in a lease."""
        named = fingerprint(self.model.digest, self.template)
        about = {name: getattr(self.model, name) for name in ("context", "vocabulary", "digest")}
        return {"model": self.model.name, **about, "fingerprint": named}


class Fleet:
    """The workers that have joined. It adds their models to the `catalog` that requests are answered from."""

    def __init__(
        self,
        catalog: Catalog,
        *,
        token: bytes,
        policy: Policy,
        metrics: Metrics,
        tell: Callable[[dict[str, Any]], None],
    ) -> None:
        self._catalog, self._token, self._policy, self._metrics, self._tell = catalog, token, policy, metrics, tell
        self._versions = {name: Version(model, template, own=True) for name, (model, template) in catalog.items()}
        self._members: dict[str, Member] = {}
        self._strangers: dict[str, tuple[float, str]] = {}  # what came from an address and was no lease
        self._gone: dict[str, float] = {}  # when a model's last worker went
        self._warned: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        for model, _ in catalog.values():
            model.doubted = self._doubted

    def beat(self, lease: Lease, peer: str) -> dict[str, Any]:
        """Take a lease, and say what has become of it."""
        now = time.monotonic()
        member = self._members.get(lease.id)
        if member is None or member.lease.served() != lease.served() or member.lease.url != lease.url:
            if member:
                self._leave(member)
            member = self._members[lease.id] = Member(lease, peer, now)
            self._start(self._vet(member))
        member.lease, member.seen = lease, now
        if member.state == "refused" and now >= member.again:
            member.state = "checking"
            self._start(self._vet(member))
        elif member.state == "expired":
            self._set(member, "ready")
        if member.state == "ready":
            self._route(member)
        return {"state": member.state, "reason": member.reason, "drain": member.leaving}

    def stranger(self, peer: str, reason: str) -> None:
        """Note why something from this address was no lease."""
        if self._strangers.get(peer, (0, ""))[1] != reason:
            say("serve", f"a lease from {peer} is refused: {reason}")
        self._strangers.pop(peer, None)
        self._strangers[peer] = (time.monotonic(), reason)
        if len(self._strangers) > STRANGERS:
            del self._strangers[next(iter(self._strangers))]

    def drain(self, name: str) -> bool:
        """Have a worker finish and end; whether there is one of this name."""
        for member in self._members.values():
            if member.name == name and member.state != "expired":
                self._retire(member)
                return True
        for version in self._versions.values():
            if version.own and name in version.model.workers:
                version.model.drain(name)
                self._tell({"retire": [name]})
                return True
        return False

    async def sweep(self) -> None:
        """Let leases expire, for ever."""
        while True:
            await asyncio.sleep(SWEEP)
            now = time.monotonic()
            for key, member in list(self._members.items()):
                if now - member.seen > LIFE and member.state != "expired":
                    ended = member.leaving or member.lease.draining
                    self._leave(member)
                    self._set(member, "expired", "it has drained" if ended else "it sent no lease any more")
                elif now - member.seen > SHOWN:
                    del self._members[key]
            for peer, (when, _) in list(self._strangers.items()):
                if now - when > SHOWN:
                    del self._strangers[peer]
            self._forget(now)
            self._warn()

    def _start(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _vet(self, member: Member) -> None:
        """Look at a worker, and route to it if it is fit."""
        lease = member.lease
        version = self._versions.get(lease.model)
        same = version is not None and version.served() == lease.served()
        known = (version.template, version.tops) if version and same else (None, None)
        try:
            worker, template, tops = await vetting.vetted(lease, member.peer, self._policy, self._token, *known)
            self._admit(member, worker, template, tops)
        except vetting.Unfit as error:
            self._refuse(member, str(error))
        except Exception as error:  # whatever it is, the others are not affected
            self._refuse(member, f"it cannot be looked at ({type(error).__name__}: {error})")

    def _admit(self, member: Member, worker: Worker, template: Template, tops: vetting.Tops) -> None:
        """Route to a fit worker, if its weights are those of its model, or are to replace them. Raises Unfit."""
        lease = member.lease
        version = self._versions.get(lease.model)
        if version is None or (version.served() != lease.served() and lease.swap > version.swap and not lease.draining):
            model = Model(lease.model, self._metrics, doubted=self._doubted)
            self._versions[lease.model] = replacing = Version(model, template, lease.swap, tops)
            self._add(member, worker, replacing)
            self._catalog[lease.model] = (model, template)
            if version is not None:
                self._replace(version)
            return
        served = version.served()
        if served != lease.served():
            differing = ", ".join(name for name, value in served.items() if value != lease.served()[name])
            if lease.swap:
                member.leaving = True
                raise vetting.Unfit(f"its {differing} were replaced by a later swap")
            raise vetting.Unfit(
                f"its {differing} differ from those of {lease.model} here; replace them with vtools serve --swap"
            )
        version.tops = version.tops or tops
        version.swap = max(version.swap, lease.swap)
        self._add(member, worker, version)

    def _add(self, member: Member, worker: Worker, version: Version) -> None:
        member.worker, member.model, member.refusals = worker, version.model, 0
        self._set(member, "ready")
        self._route(member)

    def _route(self, member: Member) -> None:
        """Have a ready worker asked, or not if it drains."""
        worker, model, lease = member.worker, member.model, member.lease
        assert worker is not None and model is not None
        worker.elsewhere = max(0, lease.in_flight - worker.in_flight)
        if lease.draining or member.leaving:
            if not worker.draining:
                worker.draining = True
                self._event(member, "draining", "it is about to be preempted" if lease.preempted else "")
        elif model.workers.get(worker.name) is not worker:
            model.up(worker, lease.context, lease.vocabulary, lease.digest)

    def _replace(self, old: Version) -> None:
        """Drain all workers of weights that were replaced."""
        for member in self._members.values():
            if member.model is old.model:
                self._retire(member)
        if old.own:
            names = [name for name, worker in old.model.workers.items() if worker.pid]
            for name in names:
                old.model.drain(name)
            asyncio.get_running_loop().call_later(RETIRE, self._tell, {"retire": names})

    def _retire(self, member: Member) -> None:
        """Ask a worker to drain, by the answer to its next lease."""
        member.leaving = True
        if member.state == "ready":
            self._route(member)

    def _leave(self, member: Member) -> None:
        """Ask a worker no more; what it writes it may finish."""
        worker, model = member.worker, member.model
        if worker and model and model.workers.get(worker.name) is worker:
            model.leave(worker.name)

    def _refuse(self, member: Member, reason: str) -> None:
        self._leave(member)
        member.again = time.monotonic() + AGAIN[min(member.refusals, len(AGAIN) - 1)]
        member.refusals += 1
        self._set(member, "refused", reason)

    def _set(self, member: Member, state: str, reason: str = "") -> None:
        """Note a state, and say so if it is new."""
        new = (member.state, member.reason) != (state, reason)
        if new and state == "refused" and reason != member.reason:
            say("serve", f"{member.name} is refused: {reason}")
        if new:
            self._event(member, state, reason)
        member.state, member.reason = state, reason

    def _event(self, member: Member, state: str, reason: str) -> None:
        about = {"worker": member.name, "model": member.lease.model, **({"reason": reason} if reason else {})}
        self._tell({"event": "lease", "state": state, **about})

    def _doubted(self, worker: Worker) -> None:
        """A worker lost an answer: its parent looks at one of our own, and we at another."""
        if worker.pid:
            self._tell({"doubted": worker.pid})
            return
        member = next((one for one in self._members.values() if one.worker is worker), None)
        if member is not None and member.state == "ready":
            self._start(self._look_again(member, worker))

    async def _look_again(self, member: Member, worker: Worker) -> None:
        if await vetting.canary(worker, member.lease.vocabulary):
            if member.model is not None:
                member.model.alive(worker.name)
        elif member.state == "ready" and member.worker is worker:
            self._refuse(member, "it lost an answer, and gives no token any more")

    def _forget(self, now: float) -> None:
        """Forget models whose workers have long gone."""
        for name, version in list(self._versions.items()):
            waited_for = version.own or version.model.workers
            if waited_for or any(one.model is version.model and one.state == "ready" for one in self._members.values()):
                self._gone.pop(name, None)
            elif now - self._gone.setdefault(name, now) > RESTART:
                del self._versions[name], self._catalog[name], self._gone[name]

    def _warn(self) -> None:
        """Say once which models hang on one machine that may be taken away."""
        alone = {name for name, version in self._versions.items() if self._hangs(version)}
        for name in sorted(alone - self._warned):
            say(
                "serve",
                f"{name} has one worker, on a spot machine: start another, or answers wait when it is taken away",
            )
        self._warned = alone

    def _hangs(self, version: Version) -> bool:
        """Whether the only worker of a model may be taken away."""
        workers = list(version.model.workers.values())
        spots = [one.worker for one in self._members.values() if one.lease.spot]
        return len(workers) == 1 and workers[0] in spots

    def status(self) -> dict[str, Any]:
        """Models, workers and leases, with the reasons of those that are refused."""
        now = time.monotonic()
        members = {one.worker: one for one in self._members.values() if one.worker}
        workers = []
        for name, version in self._versions.items():
            for worker in version.model.workers.values():
                if worker not in members:
                    state = "draining" if worker.draining else "ready"
                    about = {"model": name, "worker": worker.name, "state": state, "in_flight": worker.in_flight}
                    workers.append({**about, "pid": worker.pid})
        for member in self._members.values():
            lease, asked = member.lease, member.worker
            draining = member.state == "ready" and asked is not None and asked.draining
            workers.append(
                {
                    "model": lease.model,
                    "worker": member.name,
                    "state": "draining" if draining else member.state,
                    **({"reason": member.reason} if member.reason else {}),
                    "in_flight": asked.in_flight if asked else 0,
                    "load": lease.in_flight,
                    "id": lease.id,
                    "url": lease.url,
                    "from": member.peer,
                    "digest": lease.digest,
                    "spot": lease.spot,
                    "preempted": lease.preempted,
                    "seconds": round(now - member.seen, 1),
                }
            )
        models = [
            {
                "model": name,
                "workers": sum(not one.draining for one in version.model.workers.values()),
                "in_flight": sum(one.in_flight for one in version.model.workers.values()),
                "context": version.model.context,
                "digest": version.model.digest,
                **({"warning": "its only worker is on a spot machine"} if self._hangs(version) else {}),
            }
            for name, version in self._versions.items()
        ]
        refused = [{"from": peer, "reason": reason, "seconds": round(now - when, 1)}
                   for peer, (when, reason) in self._strangers.items()]  # fmt: skip
        return {"models": models, "workers": workers, "refused": refused}
