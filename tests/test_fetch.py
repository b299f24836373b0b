"""fetch: files and a real HTTP server, with all that goes wrong on the way."""

from __future__ import annotations

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import chat

RECORDS = [{"id": f"c{n}", "messages": chat(f"Question {n}", "word " * 200)} for n in range(300)]
BODY = json.dumps(RECORDS).encode()
PACKED = gzip.compress(BODY)


class Server(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seen: list

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.seen.append((self.path, dict(self.headers)))
        body, tag = BODY, '"v1"'
        visit = sum(path == self.path for path, _ in self.seen)
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "/all")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.path == "/busy" and visit < 3:
            self.send_response(429)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.path == "/exact" and self.headers.get("Range"):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(BODY)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.path == "/exact":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(BODY), BODY))  # and never the last chunk
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
            return
        if self.path == "/missing":
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.path == "/packed":
            body = PACKED
        if self.path == "/changing":
            tag = f'"v{visit}"'
        asked = self.headers.get("Range")
        start = (
            int(asked.removeprefix("bytes=").rstrip("-"))
            if asked and self.path != "/norange" and self.headers.get("If-Range") == tag
            else 0
        )
        self.send_response(206 if start else 200)
        self.send_header("ETag", tag)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        part = body[start:]
        if (self.path in ("/breaking", "/norange", "/changing") and visit < 4) or (self.path == "/hopeless"):
            self.wfile.write(part[: len(body) // 3 if self.path != "/hopeless" or visit == 1 else 0])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
            return
        self.wfile.write(part)


@pytest.fixture
def server():
    handler = type("Handler", (Server,), {"seen": []})
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    handler.url = f"http://127.0.0.1:{httpd.server_address[1]}"
    yield handler
    httpd.shutdown()
    httpd.server_close()


@pytest.mark.parametrize("path", ["/all", "/packed", "/redirect", "/busy", "/breaking", "/norange", "/exact"])
def test_a_url_gives_all_its_records_whatever_happens_on_the_way(vtools, server, path):
    done = vtools("fetch", server.url + path)
    assert done.returncode == 0, done.errors
    assert [record["id"] for record in done.records] == [record["id"] for record in RECORDS]
    source = done.records[0]["source"]
    assert (source["kind"], source["uri"]) == ("messages", server.url + path)
    assert source["fetched_at"].endswith("Z")


def test_a_broken_download_asks_for_the_rest_only(vtools, server):
    vtools("fetch", server.url + "/breaking")
    ranges = [headers.get("Range") for _, headers in server.seen]
    assert ranges[0] is None
    assert all(asked for asked in ranges[1:])
    assert all(headers["User-Agent"].startswith("vtools/") for _, headers in server.seen)


@pytest.mark.parametrize("path", ["/changing", "/hopeless"])
def test_a_download_that_cannot_be_finished_gives_its_whole_records_and_says_where_it_broke(
    vtools, server, tmp_path, path
):
    done = vtools("fetch", server.url + path, "--rejects", "rejects.jsonl")
    assert done.returncode == 0
    ids = [record["id"] for record in done.records]
    assert 50 < len(ids) < 300
    assert ids == [record["id"] for record in RECORDS[: len(ids)]]
    reject = json.loads((tmp_path / "rejects.jsonl").read_text())
    assert reject["reason"] == "torn_input"
    plain = vtools("fetch", server.url + path)
    assert plain.returncode == 1
    assert "byte" in plain.errors


@pytest.mark.parametrize(("path", "why"), [("/missing", "HTTP 404"), ("", "Connection refused")])
def test_a_url_that_gives_nothing_is_one_line_and_exit_1(vtools, server, path, why):
    url = server.url + path if path else "http://127.0.0.1:9/x"
    done = vtools("fetch", url)
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
    done = vtools("fetch", server.url + "/all", "--limit", 7)
    assert len(done.records) == 7
    assert done.returncode == 0


def test_the_real_torn_file_gives_its_17671_whole_records(vtools, sharegpt, tmp_path):
    done = vtools("fetch", sharegpt, "--rejects", "torn.jsonl", "-o", "raw.jsonl")
    assert done.returncode == 0
    assert "17672 in, 17671 out, 1 rejected (torn_input 1)" in done.errors
    assert (tmp_path / "raw.jsonl").read_bytes().count(b"\n") == 17671
