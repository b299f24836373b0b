"""The keys of clients: names, limits, a file that is read again, one that is printed once; TLS; what a bind needs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import ssl
import subprocess

import httpx2
import pytest
from engines import made
from rogue_worker import Rogue
from running import bad, run, wait_until
from serving import Server, body, states

from vtools.process import UsageFailure
from vtools.serve import keys
from vtools.serve.errors import ApiError


def new_key(file, name: str) -> str:
    done = run("serve", "--new-key", name, env={"VTOOLS_KEYS_FILE": str(file)})
    assert done.returncode == 0, done.errors
    return done.stdout.decode().strip()


def listed(edge: Server, key: str) -> httpx2.Response:
    headers = {"authorization": f"Bearer {key}"}
    return httpx2.get(f"{edge.url}/models", headers=headers, timeout=30)  # a new edge waits for workers first


def test_a_key_has_a_name_limits_and_models_and_the_file_is_read_again(tmp_path):
    file = tmp_path / "keys.jsonl"
    first = new_key(file, "ana")
    assert first not in file.read_text() and file.stat().st_mode & 0o777 == 0o600
    edge = Server(VTOOLS_KEYS_FILE=str(file))
    assert (listed(edge, first).status_code, listed(edge, "x").status_code) == (200, 401)
    second = new_key(file, "ben")
    assert listed(edge, second).status_code == 401
    limited = [json.loads(line) for line in file.read_text().splitlines()]
    limited[1] |= {"per_minute": 2, "models": ["theirs"]}
    file.write_text("".join(json.dumps(line) + "\n" for line in limited))
    edge.process.send_signal(signal.SIGHUP)
    wait_until(lambda: listed(edge, second).status_code == 200)
    with Rogue(made(tmp_path / "m"), edge.url, b"", name="ours", at="127.0.0.1").listening() as worker:
        wait_until(lambda: worker.beat()["state"] == "ready")
        asked = [
            edge.post(body(model=model), headers={"authorization": f"Bearer {key}"})
            for key, model in ((first, "ours"), (second, "ours"), (second, "ours"), (second, "ours"))
        ]
    assert [reply.status_code for reply in asked] == [200, 404, 404, 429]
    assert asked[1].json()["error"]["code"] == "model_not_found" and "ours" not in listed(edge, second).text
    assert int(asked[3].headers["retry-after"]) > 0
    assert [edge.event().get("key") for _ in asked] == ["ana", "ben", "ben", "ben"]
    file.write_text("{")
    edge.process.send_signal(signal.SIGHUP)
    wait_until(lambda: any(b"the keys stay as they were" in line for line in edge.errors))
    assert listed(edge, first).status_code == 200
    assert edge.end() == 0
    assert not any(first in line.decode() for line in edge.lines + edge.errors)


@pytest.mark.parametrize(
    "line",
    [
        "[]", '{"name": "a"}', '{"name": "a b", "sha256": "%s"}' % ("0" * 64), '{"name": "a", "sha256": "00"}',
        '{"name": "a", "sha256": "%s", "per_minute": 0}' % ("0" * 64), '{"name": "a", "sha256": "%s", "key": "x"}' % ("0" * 64),
    ],
)  # fmt: skip
def test_a_line_that_is_no_key_is_named(tmp_path, line):
    file = tmp_path / "keys"
    file.write_text(line + "\n")
    with pytest.raises(UsageFailure, match=r"keys:1: not a key; write one JSON object a line, such as"):
        keys.read(str(file))


def test_requests_of_a_minute_are_given_back_as_it_passes(monkeypatch):
    now = 100.0
    monkeypatch.setattr(keys.time, "monotonic", lambda: now)
    key = keys.Key("ana", "", per_minute=60, at=now)
    for _ in range(60):
        key.take()
    with pytest.raises(ApiError) as refused:
        key.take()
    assert (refused.value.status, refused.value.headers) == (429, {"retry-after": "1"})
    now += 1.0
    key.take()


def test_what_a_bind_and_a_worker_need_is_said_before_anything_is_loaded(tmp_path):
    folder = made(tmp_path / "m")
    token = {"VTOOLS_JOIN_TOKEN": "t"}
    for wanted, arguments, env in (
        ("VTOOLS_API_KEY or VTOOLS_KEYS_FILE", ("--host", "0.0.0.0"), {}),
        ("VTOOLS_JOIN_TOKEN", ("--host", "0.0.0.0"), {"VTOOLS_API_KEY": "k"}),
        ("VTOOLS_JOIN_TOKEN", (folder, "--join", "https://edge.example", "--host", "0.0.0.0"), {}),
        ("give an address by --host", (folder, "--join", "https://edge.example"), token),
        ("--join needs a MODEL", ("--join", "https://edge.example"), token),
        ("leave one out", (folder, "--join", "http://localhost:1", "--allow-net", "10.0.0.0/8"), token),
        ("--spot is for workers", (folder, "--spot", "aws"), {}),
        ("aws, gcp, azure", (folder, "--join", "http://localhost:1", "--spot", "moon"), {}),
        ("choose one", ("--status", "--drain", "x"), {}),
        ("--allow-net", ("--allow-net", "10.0.0.1/8"), {}),
        ("belong together", ("--tls-cert", folder / "config.json"), {}),
        ("VTOOLS_KEYS_FILE", ("--new-key", "ana"), {}),
        ("is an engine of its own", ("http://localhost:1", "--join", "http://localhost:2"), {}),
        ("adds a key", ("--new-key", "ana", folder), {"VTOOLS_KEYS_FILE": "x"}),
    ):
        assert wanted in bad("serve", *arguments, code=2, env=env)


def test_edge_and_worker_speak_tls_with_certificates_of_their_own(tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    pair = [tmp_path / "cert.pem", tmp_path / "key.pem"]
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-out", str(pair[0]), "-keyout", str(pair[1])]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    tls = ("--tls-cert", pair[0], "--tls-key", pair[1])
    edge = Server(*tls, SSL_CERT_FILE=str(pair[0]))
    assert edge.url.startswith("https://")
    worker = Server(f"m={made(tmp_path / 'm')}", "--join", edge.url, *tls, SSL_CERT_FILE=str(pair[0]))
    os.environ["SSL_CERT_FILE"] = str(pair[0])
    try:
        wait_until(lambda: "ready" in states(edge).values())
        reply = httpx2.post(
            f"{edge.url}/chat/completions",
            json=body(model="m"),
            verify=ssl.create_default_context(cafile=pair[0]),
            timeout=60,
        )
        assert reply.status_code == 200
        edge.end()
        worker.end()
    finally:
        del os.environ["SSL_CERT_FILE"]
