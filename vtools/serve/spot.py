"""Notices that a spot machine is about to be taken away, as the metadata servers of the clouds give them."""

import asyncio
from typing import Any, NamedTuple

from vtools.process import UsageFailure, say

POLL = 1.0  # seconds
PATIENCE = 2.0  # seconds for the metadata server to answer
TOKEN_LIFE = "21600"  # seconds


class Source(NamedTuple):
    """Where a cloud gives notice; `cloud` is aws, gcp or azure."""

    cloud: str
    url: str


# As the clouds document them; no name is resolved.
SOURCES = {"aws": "http://169.254.169.254", "gcp": "http://169.254.169.254", "azure": "http://169.254.169.254"}


def source(given: str) -> Source:
    """The source that `--spot CLOUD[=URL]` names. Raises UsageFailure."""
    cloud, _, url = given.partition("=")
    if cloud not in SOURCES or (url and not url.startswith(("http://", "https://"))):
        raise UsageFailure(f"--spot {given}: write {', '.join(SOURCES)}, or CLOUD=URL with the metadata server's URL")
    return Source(cloud, (url or SOURCES[cloud]).rstrip("/"))


async def noticed(source: Source) -> None:
    """Return once the machine is about to be taken away; ask every second."""
    import httpx2

    silent = False
    async with httpx2.AsyncClient(trust_env=False, timeout=PATIENCE) as client:
        while True:
            try:
                if await _is_noticed(client, source):
                    return
                silent = False
            except (httpx2.HTTPError, ValueError) as error:
                if not silent:
                    what = f"{source.url}: no notice can be read ({error or type(error).__name__})"
                    say("serve", f"{what}; asking on every second")
                silent = True
            await asyncio.sleep(POLL)


async def _is_noticed(client: Any, source: Source) -> bool:
    """Ask once. Raises HTTPError, ValueError."""
    if source.cloud == "aws":  # instance-action is there only once the instance is to be stopped
        life = {"x-aws-ec2-metadata-token-ttl-seconds": TOKEN_LIFE}
        token = (await client.put(f"{source.url}/latest/api/token", headers=life)).raise_for_status().text
        named = {"x-aws-ec2-metadata-token": token}
        reply = await client.get(f"{source.url}/latest/meta-data/spot/instance-action", headers=named)
        return bool(reply.status_code != 404 and reply.raise_for_status().json().get("action"))
    if source.cloud == "gcp":
        flavor = {"metadata-flavor": "Google"}
        reply = await client.get(f"{source.url}/computeMetadata/v1/instance/preempted", headers=flavor)
        return bool(reply.raise_for_status().text.strip() == "TRUE")
    asked = f"{source.url}/metadata/scheduledevents?api-version=2020-07-01"
    reply = (await client.get(asked, headers={"metadata": "true"})).raise_for_status().json()
    return any(event.get("EventType") == "Preempt" for event in reply.get("Events", []))
