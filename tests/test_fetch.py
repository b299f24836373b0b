"""fetch: files and a real HTTP server, with all that goes wrong on the way."""

from __future__ import annotations

import gzip
import json

import pytest
from chats import chat
from loopback import Reply, Request, Server, closed_port

RECORDS = [{"id": f"c{n}", "messages": chat(f"Question {n}", "word " * 200)} for n in range(300)]
BODY = json.dumps(RECORDS).encode()
PACKED = gzip.compress(BODY)
FAST = ("--rate", 1000)


@pytest.fixture
def server():
    """One that breaks off, moves, is busy, forgets ranges or changes its file, by the path that it is asked for."""

    def reply(request: Request) -> Reply:
        if request.path == "/robots.txt":
            return Reply(status=404)
        visit = sum(other.path == request.path for other in server.requests)
        path, asked = request.path, request.headers.get("Range")
        if path == "/redirect":
            return Reply(status=302, headers={"Location": "/all"})
        if path == "/busy" and visit < 3:
            return Reply(status=429, headers={"Retry-After": "0"})
        if path == "/missing":
            return Reply(status=404)
        if path == "/exact" and asked:
            return Reply(status=416, headers={"Content-Range": f"bytes */{len(BODY)}"})
        if path == "/exact":  # and never the last chunk
            return Reply([b"%x\r\n%s\r\n" % (len(BODY), BODY)], headers={"Transfer-Encoding": "chunked"})
        body = PACKED if path == "/packed" else BODY
        tag = f'"v{visit}"' if path == "/changing" else '"v1"'
        start = 0
        if asked and path != "/norange" and request.headers.get("If-Range") == tag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        answer = Reply(body[start:], 206 if start else 200, {"ETag": tag})
        if start:
            answer.headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        if path == "/hopeless" or (path in ("/breaking", "/norange", "/changing") and visit < 4):
            answer.headers["Content-Length"] = str(len(answer.body))
            answer.body = answer.body[: len(body) // 3 if path != "/hopeless" or visit == 1 else 0]
        return answer

    with Server(reply) as server:
        yield server


@pytest.mark.parametrize("path", ["/all", "/packed", "/redirect", "/busy", "/breaking", "/norange", "/exact"])
def test_a_url_gives_all_its_records_whatever_happens_on_the_way(vtools, server, path):
    done = vtools("fetch", server.url + path, *FAST)
    assert done.returncode == 0, done.errors
    assert [record["id"] for record in done.records] == [record["id"] for record in RECORDS]
    source = done.records[0]["source"]
    assert (source["kind"], source["uri"]) == ("messages", server.url + path)
    assert source["fetched_at"].endswith("Z")


def test_a_broken_download_asks_for_the_rest_only(vtools, server):
    vtools("fetch", server.url + "/breaking", *FAST)
    ranges = [request.headers.get("Range") for request in server.requests if request.path == "/breaking"]
    assert ranges[0] is None
    assert all(asked for asked in ranges[1:])
    assert all(request.headers["User-Agent"].startswith("vtools/") for request in server.requests)


@pytest.mark.parametrize("path", ["/changing", pytest.param("/hopeless", marks=pytest.mark.slow)])
def test_a_download_that_cannot_be_finished_gives_its_whole_records_and_says_where_it_broke(
    vtools, server, tmp_path, path
):
    done = vtools("fetch", server.url + path, *FAST, "--rejects", "rejects.jsonl")
    assert done.returncode == 0
    ids = [record["id"] for record in done.records]
    assert 50 < len(ids) < 300
    assert ids == [record["id"] for record in RECORDS[: len(ids)]]
    reject = json.loads((tmp_path / "rejects.jsonl").read_text())
    assert reject["reason"] == "torn_input"
    plain = vtools("fetch", server.url + path, *FAST)
    assert plain.returncode == 1
    assert "byte" in plain.errors


@pytest.mark.parametrize(("path", "why"), [("/missing", "HTTP 404"), ("", "Connection refused")])
def test_a_url_that_gives_nothing_is_one_line_and_exit_1(vtools, server, path, why):
    with closed_port() as port:
        url = server.url + path if path else f"http://127.0.0.1:{port}/x"
        done = vtools("fetch", url, *FAST)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.errors.startswith(f"vtools fetch: {url}: ")
    assert why in done.errors
    assert done.errors.count("\n") == 1


def test_local_records_say_their_file_and_license_and_no_time(vtools, tmp_path):
    (tmp_path / "chats.json").write_text(json.dumps([{"instruction": "Q", "output": "A"}]))
    one = vtools("fetch", "chats.json", "--license", "cc0-1.0")
    assert one.records[0]["source"] == {"kind": "alpaca", "uri": "chats.json", "license": "cc0-1.0"}
    assert vtools("fetch", "chats.json", "--license", "cc0-1.0").stdout == one.stdout


def test_a_source_that_is_known_already_is_kept(vtools):
    record = {"id": "a", "messages": chat("Q", "A"), "source": {"kind": "mine", "license": "mit"}}
    assert vtools("fetch", stdin=json.dumps(record)).records[0]["source"] == record["source"]


def test_limit_stops_early(vtools, server):
    done = vtools("fetch", server.url + "/all", "--limit", 7, *FAST)
    assert len(done.records) == 7
    assert done.returncode == 0


def test_the_real_torn_file_gives_its_17671_whole_records(vtools, sharegpt, tmp_path):
    done = vtools("fetch", sharegpt, "--rejects", "torn.jsonl", "-o", "raw.jsonl")
    assert done.returncode == 0
    assert "17672 in, 17671 out, 1 rejected (torn_input 1)" in done.errors
    assert (tmp_path / "raw.jsonl").read_bytes().count(b"\n") == 17671
