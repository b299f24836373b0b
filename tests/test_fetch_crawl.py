"""fetch as a crawler: polite to servers, and not led astray by them."""

from __future__ import annotations

import json
import shutil
import sqlite3
import ssl
import sys

import pytest
from loopback import Reply, Server
from misbehaving import Site, conversation, most_within_a_second
from running import ROOT, execute, peak

FAST = ("--rate", 1000)


@pytest.fixture
def site():
    with Site() as site:
        yield site


def listed(urls: list[str]) -> str:
    return "# a list\n\n" + "".join(f"{url}\n" for url in urls)


def reasons(path) -> dict[str, str]:
    rows = map(json.loads, path.read_text().splitlines())
    return {row["source"].rpartition("/")[2]: f"{row['reason']}: {row['detail']}" for row in rows}


@pytest.mark.slow
def test_every_conversation_of_a_server_that_misbehaves_is_had_exactly_once(vtools, tmp_path):
    with Server(lambda request: Reply(b"secret")) as secret, Site(secret.url) as site:
        urls = site.urls(*site.GOOD, *site.BAD, *site.GOOD)
        fetch = ("fetch", "--sources", "-", "--state", "s.db", "--append", "all.jsonl", "--rejects", "bad.jsonl", "--rate", 20, "--timeout", 1, "--max-bytes", 5_000_000)  # fmt: skip
        done = vtools(*fetch, stdin=listed(urls))
        assert done.returncode == 0, done.errors
        ids = [json.loads(line)["id"] for line in (tmp_path / "all.jsonl").read_text().splitlines()]
        had = {"moved": "moved/here"}
        assert sorted(ids) == sorted(had.get(name, name) for name in site.GOOD)
        assert sqlite3.connect(tmp_path / "s.db").execute("SELECT count(*) FROM records").fetchone() == (len(ids),)
        why = reasons(tmp_path / "bad.jsonl")
        assert set(why) == {name.rpartition("/")[2] for name in site.BAD}
        assert "404" in why["gone"] and "robots.txt forbids" in why["x"]
        assert "private" in why["inside"] and "private" in why["metadata"]
        assert "bomb" in why["bomb"] and "bomb" in why["zstdbomb"] and "--max-bytes" in why["endless"]
        assert "login" in why["login"] and "challenge" in why["challenge"] and "challenge" in why["wall"]
        assert secret.requests == [] and "denied/x" not in site.asked
        assert most_within_a_second([request.time for request in site.requests]) <= 20


def test_a_host_is_asked_no_more_often_than_the_rate_and_over_one_connection(vtools, site):
    names = [f"c{number}" for number in range(24)]
    done = vtools("fetch", "--sources", "-", "--rate", 10, "-j", 8, stdin=listed(site.urls(*names)))
    assert [record["id"] for record in done.records] == names
    times = [request.time for request in site.requests]
    assert len(times) == 25 and most_within_a_second(times) <= 10
    assert site.most == 1


def test_a_robots_txt_is_obeyed_with_its_delay_and_read_once(vtools, tmp_path):
    with Site(robots=b"User-agent: vtools\nDisallow: /denied\nCrawl-delay: 0.5\n\nUser-agent: *\nDisallow: /") as site:
        names = ("one", "denied/two", "three")
        done = vtools("fetch", *site.urls(*names), *FAST, "--rejects", "r.jsonl", "--contact", "me@example.org")
        assert [record["id"] for record in done.records] == ["one", "three"]
        assert site.asked == ["robots.txt", "one", "three"]
        assert most_within_a_second([request.time for request in site.requests]) <= 2
        assert all("me@example.org" in request.headers["User-Agent"] for request in site.requests)


def test_a_host_whose_robots_txt_cannot_be_read_is_asked_for_nothing(vtools):
    def reply(request):
        return Reply(status=503, headers={"Retry-After": "500"}) if request.path == "/robots.txt" else Reply(b"{}")

    with Server(reply) as server:
        done = vtools("fetch", f"{server.url}/x", *FAST)
        assert done.returncode == 1 and "robots.txt: HTTP 503" in done.errors
        assert [request.path for request in server.requests] == ["/robots.txt"]


def test_hosts_are_asked_at_once_and_records_keep_the_order_of_the_sources(vtools):
    with Site() as one, Site() as two, Site() as three:
        urls = [site.urls(f"{name}{number}")[0] for number in range(6) for name, site in (("a", one), ("b", two), ("c", three))]  # fmt: skip
        several = vtools("fetch", "--sources", "-", *FAST, "-j", 3, stdin=listed(urls))
        alone = vtools("fetch", "--sources", "-", *FAST, stdin=listed(urls))
    assert [record["id"] for record in several.records] == [url.rpartition("/")[2] for url in urls]
    assert [record["id"] for record in alone.records] == [record["id"] for record in several.records]


def test_a_host_that_keeps_refusing_is_left_alone(vtools, tmp_path):
    with Server(lambda request: Reply(status=404 if request.path == "/robots.txt" else 403)) as server:
        urls = [f"{server.url}/{number}" for number in range(30)]
        done = vtools("fetch", "--sources", "-", *FAST, "--rejects", "r.jsonl", stdin=listed(urls))
        assert len(server.requests) == 6  # robots.txt, and five sources
        assert done.returncode == 1 and "HTTP 403" in done.errors and "none of the 30" in done.errors
        assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 30


def test_a_server_that_asks_for_an_hour_is_not_asked_again(vtools):
    with Server(lambda request: Reply(status=404 if request.path == "/robots.txt" else 429, headers={"Retry-After": "3600"})) as server:  # fmt: skip
        done = vtools("fetch", f"{server.url}/1", f"{server.url}/2", *FAST, "--rejects", "r.jsonl")
        assert len(server.requests) == 2
        assert done.returncode == 1


def test_a_redirect_to_a_private_address_is_refused_and_never_dialled(vtools):
    with Server(lambda request: Reply(b"secret")) as secret, Site(secret.url) as site:
        for name in ("inside", "metadata", "file"):
            done = vtools("fetch", *site.urls(name), *FAST)
            assert done.returncode == 1 and done.stdout == b""
            assert "private" in done.errors or "not http(s)" in done.errors
        assert secret.requests == []


@pytest.mark.slow
def test_a_name_that_changes_its_address_leads_nowhere_private(tmp_path):
    alone = ["unshare", "-rmn", sys.executable, str(ROOT / "tests" / "rebinding.py")]
    if not shutil.which("unshare") or not shutil.which("ip") or execute(["unshare", "-rmn", "true"]).returncode:
        pytest.skip("no network namespace can be made here")
    (found,) = execute(alone, cwd=tmp_path).records
    assert found["given"] >= 2 and found["public"] == 1 and found["secret"] == 0
    assert found["code"] == 1 and "rebound.example (127.0.0.1), a private address" in found["said"]


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "192.168.0.1", "100.64.0.1", "0.0.0.0", "::1", "fe80::1%eth0", "fd00::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"])  # fmt: skip
def test_an_address_that_is_not_of_the_public_internet_is_known_in_every_form(address):
    from vtools.network_addresses import is_private

    assert is_private(address)
    assert not is_private("93.184.216.34") and not is_private("2606:2800:220:1:248:1893:25c8:1946")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for localhost that signs itself, with its key."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    about = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", str(file), "-out", str(file) + ".crt"]  # fmt: skip
    made = execute([*make, *about])
    assert made.returncode == 0, made.errors
    return file


def test_over_https_the_name_is_checked_and_no_redirect_leaves_it(vtools, site, certificate):
    def reply(request):
        if request.path == "/down":
            return Reply(status=302, headers={"Location": f"{site.url}/plain"})
        return Reply(status=404) if request.path == "/robots.txt" else Reply(json.dumps(conversation("safe")).encode())

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{certificate}.crt", certificate)
    with Server(reply, tls=context) as server:
        port, env = server.url.rpartition(":")[2], {"SSL_CERT_FILE": f"{certificate}.crt"}
        known = vtools("fetch", f"https://localhost:{port}/x", *FAST, env=env)
        assert [record["id"] for record in known.records] == ["safe"], known.errors
        other = vtools("fetch", f"https://127.0.0.1:{port}/x", *FAST, env=env)
        assert other.returncode == 1 and "certificate" in other.errors
        down = vtools("fetch", f"https://localhost:{port}/down", *FAST, env=env)
        assert down.returncode == 1 and "from https to http" in down.errors and "plain" not in site.asked


def test_a_proxy_of_the_environment_is_used_except_for_what_it_excludes(vtools):
    with Server(lambda request: Reply(json.dumps(conversation("far")).encode())) as proxy, Site() as site:
        env = {"http_proxy": proxy.url, "no_proxy": "", "HTTP_PROXY": ""}
        done = vtools("fetch", "http://example.invalid/far", *site.urls("near"), *FAST, env=env)
        assert [record["id"] for record in done.records] == ["far", "near"]
        assert [request.path for request in proxy.requests][-1] == "http://example.invalid/far"


def test_what_never_ends_is_stopped_in_little_memory(tmp_path, site):
    limits = (*FAST, "--max-bytes", 20_000_000, "--rejects", "r.jsonl")
    urls = site.urls("plain", "endless", "bomb", "zstdbomb", "blank")
    assert peak("fetch", *urls, *limits, cwd=tmp_path) < 300 << 20
    assert set(reasons(tmp_path / "r.jsonl")) >= {"endless", "bomb", "zstdbomb"}


def test_a_silent_server_and_a_slow_one_are_given_up(vtools, site, tmp_path):
    limits = (*FAST, "--timeout", 0.3, "--max-seconds", 0.5, "--rejects", "r.jsonl")
    done = vtools("fetch", *site.urls("endless", "plain"), *limits)
    assert [record["id"] for record in done.records] == ["plain"]
    assert "--max-seconds" in reasons(tmp_path / "r.jsonl")["endless"]


def test_a_page_about_logins_is_no_login_page():
    from vtools.fetch import walls

    talk = b"<html><script>window.data = '<input type=\"password\"> and <title>Attention required'</script><body>Chat</body></html>"
    assert walls.in_page(talk) is None
    assert walls.in_page(json.dumps({"html": "<input type='password'>"}).encode()) is None
    assert walls.in_page(b"\n <html><input id=x TYPE=password>") == "a login page"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["-o", "x", "--state", "s"], "use --append"),
        (["--wait"], "--wait"),
        (["--sources", "-", "-"], "stdin"),
        (["--state", "s", "--rejects", "./s"], "same file"),
        (["--rate", "3", "x.json"], "no source is a URL"),
    ],
)
def test_options_that_contradict_each_other_are_refused(vtools, options, why):
    done = vtools("fetch", *options)
    assert done.returncode == 2 and why in done.errors
