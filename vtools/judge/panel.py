"""The judges of a run: where each is asked, and which answers it leaves out as those of its own family.

Judges favour answers of their own: GPT-4's win rate is 10 points higher by its own verdicts than by people's (PRD,
arXiv 2307.02762). Several judges of other families agree better with people than one (arXiv 2404.18796).
"""

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vtools.inference.budget import Purse
from vtools.inference.client import Client
from vtools.inference.connect import Target, connect, where
from vtools.inference.journal import Task
from vtools.process import UsageFailure
from vtools.records.model_names import families

AT = re.compile(r"(?P<name>.+?)=(?P<url>https?://.+)", re.DOTALL)


def targets(common: Target, judges: Sequence[str]) -> list[Target]:
    """What each judge is: `common` itself, or that with each NAME or NAME=URL. Raises UsageFailure."""
    if not judges:
        return [common]
    placed = [match.groups() if (match := AT.fullmatch(judge)) else (judge, common.base_url) for judge in judges]
    if (wrong := next((name for name, _ in placed if not name or "=" in name), None)) is not None:
        raise UsageFailure(f"--judge {wrong}: give a name, and a URL after =, as in qwen=http://127.0.0.1:8000/v1")
    for name, count in Counter(name for name, _ in placed).items():
        if count > 1:
            raise UsageFailure(f"--judge {name} is given {count} times: a panel has each judge once")
    if common.base_url and all(map(AT.fullmatch, judges)):
        raise UsageFailure("--base-url: each --judge names a URL of its own; leave one of them out")
    every = [replace(common, model=name, base_url=url) for name, url in placed]
    here = [where(target.model, target.base_url) is None for target in every]
    if not all(here):  # else `connect` refuses prices, as in this process no token has one
        every = [replace(each, prices=None, max_usd=None) if h else each for each, h in zip(every, here, strict=True)]
    return every


@dataclass(frozen=True, slots=True)
class Panel:
    """One judge, or several that judge the same; `candidates` are the models whose answers they judge, each with the
    names that it goes by. Of several, a judge leaves out its own family unless `own_family`.
    """

    targets: Sequence[Target]
    candidates: Mapping[str, Sequence[str]]
    own_family: bool = False

    def connect(self) -> dict[str, Client]:
        """The client of each judge, by its name; they share one budget. Raises Failure."""
        purse = Purse(max((target.max_usd for target in self.targets if target.max_usd is not None), default=None))
        connected = (connect(target, purse=purse) for target in self.targets)
        return {name: client for client, name in connected}

    def share(self, tasks: Sequence[Task], names: Sequence[str]) -> tuple[list[Task], list[str]]:
        """The tasks, each once per judge (by these names) that is to judge it; and what is to be said of the rest.

        Raises UsageFailure if a judge has nothing left.
        """
        leaves_out = len(names) > 1 and not self.own_family
        kin = {name: self._kin(name) for name in names}
        own, without = Counter[str](), dict[str, None]()
        shared: list[Task] = []
        for task in tasks:
            if not task.question:
                shared.append(task)
                continue
            related = [name for name in names if not kin[name].keys().isdisjoint(task.question.models)]
            own.update(related)
            judges = [name for name in names if not (leaves_out and name in related)]
            shared += [replace(task, question=replace(task.question, judge=name)) for name in judges]
            if not judges:
                without[" and ".join(task.question.models)] = None
        total = sum(task.question is not None for task in tasks)
        said = []
        for name in filter(own.__getitem__, names):
            family = ", ".join(f"{model} ({', '.join(sorted(common))})" for model, common in kin[name].items())
            if not leaves_out:
                said.append(f"warning: {name} may favour its own family, in {own[name]:,} of {total:,}: {family}")
            elif own[name] == total:
                raise UsageFailure(
                    f"nothing is left for {name} to judge, as its own family is everywhere: {family}; take it off the "
                    "panel, or let it judge them with --own-family"
                )
            else:
                said.append(f"{name} leaves out its own family, {own[name]:,} of {total:,} judgments: {family}")
        return shared, said + [f"warning: no judge is left for {models}" for models in without]

    def _kin(self, judge: str) -> dict[str, set[str]]:
        """The candidates of a judge's family, each with the families that both are of."""
        found = {}
        for model, names in self.candidates.items():
            if common := families(judge).intersection(itertools.chain(*map(families, names))):
                found[model] = common
        return found
