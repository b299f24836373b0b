"""Who may join an edge: a worker that lies, or whose address is not one to dial, is refused with a reason, and only it."""

from __future__ import annotations

import asyncio
import dataclasses
import time

import httpx2
import pytest
from engines import made
from rogue_worker import Rogue, send
from running import bad, wait_until
from serving import Server, body, states, status

from vtools import network_addresses
from vtools.serve.signatures import Unsigned, check, headers
from vtools.serve.vetting import CHALLENGE, TEMPLATE
from vtools.serve.worker_url import BadUrl, Policy, networks

TOKEN, KEY = "a join token", "a client's key"
ENV = {"VTOOLS_JOIN_TOKEN": TOKEN, "VTOOLS_API_KEY": KEY}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return made(tmp_path_factory.mktemp("refused") / "m")


@pytest.fixture(scope="module")
def edge():
    """An edge that other machines reach: 127.0.0.2 stands for one of them."""
    started = Server("--host", "0.0.0.0", "--allow-net", "127.0.0.2/32", **ENV)
    started.url = started.url.replace("0.0.0.0", "127.0.0.1")
    yield started
    assert started.end() == 0


@pytest.fixture(scope="module")
def good(edge, model):
    """A worker that keeps to the rules, and is asked all the time."""
    with Rogue(model, edge.url, TOKEN.encode()).listening() as worker:
        wait_until(lambda: worker.beat()["state"] == "ready")
        yield worker


@pytest.fixture
def rogue(edge, good, model):
    with Rogue(model, edge.url, TOKEN.encode()).listening() as worker:
        yield worker
        wait_until(lambda: good.beat()["state"] == "ready")
        asked = body(model="good", max_tokens=2)
        assert edge.post(asked, headers={"authorization": f"Bearer {KEY}"}).status_code == 200


def reason(edge: Server, rogue: Rogue, **changes: object) -> str:
    """Why the edge refuses a worker, as its keeper reads it in the status."""
    wait_until(lambda: rogue.beat(**changes)["state"] == "refused")
    (row,) = [row for row in status(edge, **ENV)["workers"] if row.get("id") == rogue.lease.id]
    return row["reason"]


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://169.254.169.254:80", "never an address of a worker"),
        ("http://[::ffff:169.254.169.254]:80", "never an address of a worker"),
        ("http://[fd00:ec2::254]:80", "never an address of a worker"),
        ("http://localhost:8000", "this machine, not the worker's"),
        ("http://0.0.0.0:8000", "this machine, not the worker's"),
        ("http://10.1.2.3:8000", "--allow-net 10.1.2.3"),
        ("http://user:word@127.0.0.2:8000", "user name or password"),
        ("ftp://127.0.0.2:8000", "neither http nor https"),
        ("http://127.0.0.2:8000/v1?x", "more than a host and a port"),
        ("http://127.0.0.2", "lacks a host or a port"),
        ("http://no.such.name.invalid:80", "cannot be resolved"),
        ("http://127.0.0.2:1", "cannot be reached"),
    ],
)
def test_a_url_that_is_not_to_be_dialled_is_refused_with_what_is_wrong(edge, rogue, url, why):
    assert why in reason(edge, rogue, url=url)
    assert rogue.asked == []


def old_answer(rogue: Rogue):
    """Answers with what was an answer to another nonce."""
    return lambda handler, body: rogue.challenge(handler, {"nonce": "of yesterday"})


def endless(handler, body: dict) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b" " * 65536)


def torn(handler, body: dict) -> None:
    send(handler, b'{"about": [[[[')


def moved(handler, body: dict) -> None:
    send(handler, {}, 307, location="http://169.254.169.254/latest/meta-data/")


def unsigned(handler, body: dict) -> None:
    send(handler, {"about": {}, "signature": "0" * 64})


@pytest.mark.parametrize(
    ("path", "answer", "why"),
    [
        (CHALLENGE, old_answer, "not signed with the join token, or was given to an earlier one"),
        (CHALLENGE, unsigned, "not signed with the join token"),
        (CHALLENGE, moved, "redirects are not followed"),
        (CHALLENGE, torn, "does not answer"),
        (CHALLENGE, endless, "more than 65536 bytes"),
        ("/v1/completions", torn, "its engine"),
        ("/v1/completions", endless, "its engine"),
        ("/v1/completions", moved, "its engine"),
        (TEMPLATE, torn, "cannot be used"),
    ],
)
def test_a_worker_that_fails_the_look_at_it_is_refused_with_what_it_did(edge, rogue, path, answer, why):
    rogue.answers[path] = answer(rogue) if answer is old_answer else answer
    if path == TEMPLATE:  # the files are asked for only of a model that is not known yet
        rogue.lease = dataclasses.replace(rogue.lease, model="other")
    assert why in reason(edge, rogue)


def test_a_worker_that_lies_about_its_model_is_refused(edge, rogue):
    assert "its lease does not say what it serves: context differ" in reason(edge, rogue, context=4096)


def test_a_worker_whose_answers_are_not_those_of_its_weights_is_refused(edge, rogue):
    rogue.tops = lambda: {"3": -0.1, "4": -3.0}
    assert "otherwise than others with the weights that it claims" in reason(edge, rogue)


def test_a_wrong_token_and_what_is_no_lease_are_shown_with_where_they_came_from(edge, rogue):
    told = rogue.beat(token=b"guessed")
    assert "join token is wrong" in told["error"]["message"]
    (stranger,) = status(edge, **ENV)["refused"]
    assert stranger["from"] == "127.0.0.1" and "VTOOLS_JOIN_TOKEN" in stranger["reason"]
    assert "not a proper" in rogue.beat(context="x" * 9)["error"]["message"]
    assert "unknown fields" in rogue.beat(fields=1)["error"]["message"]
    assert "join token is wrong" in bad("serve", "--status", edge.url)
    assert rogue.asked == []


def test_a_key_of_a_client_is_none_of_a_worker_and_no_header_of_a_client_reaches_one(edge, good):
    assert httpx2.post(f"{good.edge}/fleet/status", headers={"authorization": f"Bearer {KEY}"}).status_code == 403
    seen = []
    answer = good.answers["/v1/completions"]
    good.answers["/v1/completions"] = lambda handler, body: (seen.append(dict(handler.headers)), answer(handler, body))
    good.beat()
    edge.post(body(model="good"), headers={"authorization": f"Bearer {KEY}", "x-own": "mine"})
    good.answers["/v1/completions"] = answer
    assert seen and all(KEY not in str(each) and "mine" not in str(each) for each in seen)
    assert seen[0]["authorization"] == "Bearer key"


def test_a_lease_that_ends_is_forgotten_and_one_that_comes_back_is_taken_again(edge, good):
    wait_until(lambda: "expired" in states(edge, **ENV).values())
    assert good.beat()["state"] == "ready"
    assert edge.post(body(model="good"), headers={"authorization": f"Bearer {KEY}"}).status_code == 200


def test_a_name_is_resolved_once_and_dialled_by_that_address(monkeypatch):
    answers = iter([["127.0.0.2"], ["169.254.169.254"], ["127.0.0.2", "169.254.169.254"]])
    monkeypatch.setattr(network_addresses, "resolve", lambda host: next(answers))
    policy = Policy(networks(["127.0.0.0/8"]), loopback=False)
    place = asyncio.run(policy.place("http://moving.example:80", "127.0.0.1"))
    assert place.address == "127.0.0.2"
    for _ in range(2):
        with pytest.raises(BadUrl, match="never an address"):
            asyncio.run(policy.place("http://moving.example:80", "127.0.0.1"))


def test_a_signed_request_is_taken_for_a_minute(monkeypatch):
    signed = headers(b"token", "/fleet/lease", b"{}")
    check(b"token", "/fleet/lease", b"{}", signed)
    for path, content in (("/fleet/drain", b"{}"), ("/fleet/lease", b"{ }")):
        with pytest.raises(Unsigned, match="token is wrong"):
            check(b"token", path, content, signed)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 61)
    with pytest.raises(Unsigned, match="set the clocks"):
        check(b"token", "/fleet/lease", b"{}", signed)
