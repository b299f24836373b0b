"""Workers that join edges: from anywhere, before or after them, and leave without losing an answer."""

from __future__ import annotations

import os
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
import running
from engines import ask, made
from running import run, wait_until
from serving import Joined, Server, body, states, status

from vtools.inference.client import Sampling
from vtools.inference.endpoint import Endpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return made(tmp_path_factory.mktemp("fleet") / "m", context=4096, endless=True, seed=1)


@pytest.fixture(scope="module")
def edges():
    pair = [Server(), Server()]
    yield pair
    for edge in pair:
        assert edge.end() == 0


@pytest.fixture(scope="module")
def workers(model, edges):
    """Two workers of one model, joined to both edges."""
    pair = [Joined(f"m={model}", *edges) for _ in range(2)]
    for edge in edges:
        wait_until(lambda: list(states(edge).values()) == ["ready", "ready"])  # noqa: B023
    yield pair
    for worker in pair:
        assert worker.end() == 0


def names(edge: Server) -> list[str]:
    return [model["id"] for model in httpx2.get(f"{edge.url}/models").json()["data"]]


def test_a_worker_serves_through_every_edge_that_it_joined(edges, workers):
    asked = body(model="m", max_tokens=32)
    assert [names(edge) for edge in edges] == [["m"], ["m"]]
    answers = [edge.post(asked).json() for edge in edges]
    assert answers[0]["choices"] == answers[1]["choices"] and answers[0]["usage"]["completion_tokens"] == 32
    assert answers[0]["system_fingerprint"] == answers[1]["system_fingerprint"]


def test_an_edge_that_dies_and_starts_again_knows_its_workers_from_their_next_leases(edges, workers):
    edge = edges[0]
    (child,) = edge.children()
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: edge.children() not in ([], [child]))
    wait_until(lambda: list(states(edge).values()) == ["ready", "ready"])
    assert edge.post(body(model="m")).status_code == 200


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_client_that_knows_two_edges_gets_the_whole_text_though_one_dies_amid_it(edges, workers, temperature):
    sampling = Sampling(max_tokens=400, temperature=temperature, seed=7)
    messages = ask("the cat")
    urls = ",".join(edge.url for edge in edges)
    whole = "".join(Endpoint(edges[1].url, "m").stream(messages, sampling))
    client = Endpoint(urls, "m")
    pieces = []
    for piece in client.stream(messages, sampling):
        pieces.append(piece)
        if len(pieces) == 20:
            os.kill(edges[0].children()[0], signal.SIGKILL)
    assert client.url == edges[1].url and "".join(pieces) == whole
    os.kill(edges[1].children()[0], signal.SIGKILL)
    assert client.complete(messages, sampling).text == whole
    for edge in edges:
        wait_until(lambda: len(edge.children()) == 1 and list(states(edge).values()) == ["ready", "ready"])  # noqa: B023


def test_an_answer_goes_on_after_the_ids_that_it_has_begun_with(edges, workers):
    asked = body(model="m", max_tokens=24, return_token_ids=True)
    choice = edges[0].post(asked).json()["choices"][0]
    for count in (1, 10, 24):
        found = edges[1].post({**asked, "answer_token_ids": choice["token_ids"][:count]}).json()
        assert found["choices"][0] == choice and found["usage"]["completion_tokens"] == 24
    for wrong in ([0] * 25, [100_000], ["a"]):
        reply = edges[0].post({**asked, "answer_token_ids": wrong})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "answer_token_ids")


@pytest.mark.slow
def test_a_worker_leaves_when_it_is_drained_and_its_answers_end_as_they_would_have(model, edges):
    edge = edges[0]
    alone = Joined(f"other={model}", edge)
    wait_until(lambda: "other" in names(edge))
    (name,) = [name for name in states(edge) if name.startswith("other@")]
    asked = body(model="other", max_tokens=600)
    wanted = edge.post(asked).json()["choices"]
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(edge.post, asked)
        wait_until(lambda: edge.health()["in_flight"] == 1)
        assert running.good("serve", "--drain", name, edge.url) == [{"draining": name}]
        assert answer.result().json()["choices"] == wanted
    assert alone.process.wait(60) == 0
    assert [event["state"] for event in alone.workers] == ["up", "draining", "down"]
    wait_until(lambda: states(edge)[name] == "expired")
    assert "no worker 'x'" in run("serve", "--drain", "x", edge.url).errors


@pytest.mark.slow
def test_other_weights_of_the_same_name_are_refused_until_they_are_swapped_in(tmp_path, model, edges):
    edge = edges[1]
    old = Joined(f"s={model}", edge)
    wait_until(lambda: "s" in names(edge))
    before = edge.post(body(model="s")).json()
    weights = made(tmp_path / "new", context=4096, endless=True, seed=2)
    other = Joined(f"s={weights}", edge)
    wait_until(lambda: "refused" in states(edge).values())
    (refused,) = [one for one in status(edge)["workers"] if one["state"] == "refused"]
    assert "digest" in refused["reason"] and "--swap" in refused["reason"]
    assert other.end() == 0
    assert edge.post(body(model="s")).json()["choices"] == before["choices"]

    first, begun = threading.Event(), []

    def stream() -> str:
        with edge.client().chat.completions.create(**body(model="s", max_tokens=500), stream=True) as chunks:
            for chunk in chunks:
                begun.append(chunk.choices[0].delta.content or "")
                first.set()
        return "".join(begun)

    whole = edge.post(body(model="s", max_tokens=500)).json()["choices"][0]["message"]["content"]
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(stream)
        assert first.wait(60)
        new = Server("--swap", f"s={weights}", edge.url)
        assert old.process.wait(60) == 0  # it was drained
        assert answer.result() == whole
    after = edge.post(body(model="s")).json()
    assert after["system_fingerprint"] != before["system_fingerprint"]
    assert new.end() == 0


@pytest.mark.slow
def test_the_recipe_of_a_fleet_serves_one_model_through_two_edges(tmp_path, model):
    with socket.socket() as first, socket.socket() as second:
        for held in (first, second):
            held.bind(("127.0.0.1", 0))
        ports = [held.getsockname()[1] for held in (first, second)]
    env = {"MODEL": str(model), "PORTS": " ".join(map(str, ports)), "PATH": running.on_path(tmp_path / "bin")}
    with running.begun(["bash", str(running.ROOT / "recipes/serve-fleet.sh")], env=env) as recipe:
        urls = [f"http://127.0.0.1:{port}/v1" for port in ports]
        client = Endpoint(",".join(urls), "chat", start_wait=120)
        wait_until(lambda: all(workers_of(url) == 2 for url in urls))
        assert client.complete(ask("the cat"), Sampling(max_tokens=8, temperature=0)).text
        recipe.terminate()
        recipe.wait(60)
        wait_until(lambda: running.processes_of(recipe.pid) == [])


def workers_of(url: str) -> int:
    """How many workers answer for all models of an edge."""
    try:
        return sum(httpx2.get(f"{url.removesuffix('/v1')}/ready").json()["workers"].values())
    except httpx2.HTTPError:
        return 0
