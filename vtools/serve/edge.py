"""The edge: the OpenAI API in a process of its own, in front of the workers.

Its supervisor passes the listening socket, and says on stdin which of its workers are up; others join by their leases.
Events go to stdout, as JSON lines.
"""

import asyncio
import json
import os
import signal
import socket
import sys
from typing import Any

from vtools.models.template import load_template
from vtools.models.tokenizer import load_tokenizer
from vtools.process import UsageFailure, say
from vtools.serve import child, fleet_routes, signatures, worker_url
from vtools.serve.admission import Admission
from vtools.serve.api import Api
from vtools.serve.fleet import Catalog, Fleet
from vtools.serve.foreign import Engines, Named
from vtools.serve.keys import Keys
from vtools.serve.lease import LIFE
from vtools.serve.metrics import Metrics
from vtools.serve.upstream import Model, Worker
from vtools.serve.worker_url import Policy


def main() -> None:
    """Serve until SIGTERM, then until the last answer has ended, or for as long as the settings say."""
    settings, tell = child.begin()
    asyncio.run(_serve(settings, tell))


async def _serve(settings: dict[str, Any], tell: child.Tell) -> None:
    loop = asyncio.get_running_loop()
    metrics = Metrics(list(settings["models"]))
    catalog: Catalog = {}
    for name, reference in settings["models"].items():
        template = load_template(settings["template"], load_tokenizer(reference), settings["system"])
        catalog[name] = (Model(name, metrics), template)
    own = {name: model for name, (model, _) in catalog.items()}
    token, keys = signatures.token(), Keys(os.environb)
    policy = Policy(worker_url.networks(settings["networks"]), settings["loopback"])
    fleet = Fleet(catalog, token=token, policy=policy, metrics=metrics, tell=tell)
    engines = Engines([Named(*each) for each in settings["engines"]], metrics)
    api = Api(
        catalog,
        admission=Admission(keys, settings["host"]),
        origins=settings["origins"],
        most=settings["most"],
        event=tell,
        metrics=metrics,
        more=fleet_routes.routes(fleet, engines, token, settings["host"], settings["loopback"]),
        engines=engines.models,
        learning=LIFE,
    )
    tls = {"ssl_certfile": settings["tls_cert"], "ssl_keyfile": settings["tls_key"]}
    config = child.config(api.application, http=child.Protocol, timeout_graceful_shutdown=1, **tls)
    server = child.Server(config, lambda: tell({"up": {}}))
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    tasks = [loop.create_task(each) for each in (_listen(reader, own, keys), fleet.sweep(), engines.watch())]

    async def drain() -> None:
        await api.drain(settings["grace"])
        server.should_exit = True

    loop.add_signal_handler(signal.SIGTERM, lambda: tasks.append(loop.create_task(drain())))
    await server.serve(sockets=[socket.socket(fileno=settings["fd"])])
    tell({"event": "drained"})


async def _listen(reader: asyncio.StreamReader, models: dict[str, Model], keys: Keys) -> None:
    """What the supervisor says of its workers, and of the file of keys."""
    async for line in reader:
        said = json.loads(line)
        if "keys" in said:
            try:
                keys.read()
                say("serve", "the file of keys was read again")
            except UsageFailure as error:
                say("serve", f"{error}; the keys stay as they were")
        elif up := said.get("up"):
            worker = Worker(up["worker"], up["pid"], up["socket"])
            models[up["model"]].up(worker, up["context"], up["vocabulary"], up["digest"])
        elif alive := said.get("alive"):
            models[alive["model"]].alive(alive["worker"])
        elif draining := said.get("draining"):
            models[draining["model"]].drain(draining["worker"])
        elif down := said.get("down"):
            models[down["model"]].down(down["worker"])


if __name__ == "__main__":
    main()
