"""fetch --state and --append: a second run writes only what is new, and nothing is lost between two runs."""

from __future__ import annotations

import json
import sqlite3
import time
from collections import Counter

import pytest
from chats import chat, jsonl
from loopback import Reply, Server
from misbehaving import Site
from running import command, good, on_a_terminal, start, wait_until
from source_files import chatgpt, node
from test_fetch_crawl import FAST, listed

STATE = ("--state", "s.db", "--append", "all.jsonl")


def ids(path) -> list[str]:
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


@pytest.fixture
def site():
    with Site() as site:
        yield site


def test_a_second_run_downloads_no_unchanged_body_and_writes_only_what_changed(vtools, site, tmp_path):
    names = [f"c{number}" for number in range(40)]
    fetch = ("fetch", "--sources", "-", *FAST, "--state", "s.db")
    assert [record["id"] for record in good(*fetch, stdin=listed(site.urls(*names)), cwd=tmp_path)] == names
    site.requests.clear()
    again = vtools(*fetch, stdin=listed(site.urls(*names)))
    assert again.stdout == b"" and "0 in, 0 out, 0 rejected, unchanged 40" in again.errors
    assert all(request.headers["If-None-Match"] for request in site.requests if request.path != "/robots.txt")
    for name in names[5:15]:
        site.versions[name] += 1
    changed = vtools(*fetch, stdin=listed(site.urls(*names)))
    assert [record["id"] for record in changed.records] == [f"{name} 1" for name in names[5:15]]
    assert "10 in, 10 out, 0 rejected, unchanged 30" in changed.errors


def test_of_a_dump_without_a_validator_only_its_new_conversations_are_written(vtools, tmp_path):
    records = [{"id": f"c{number}", "messages": chat(f"Q{number}", "A")} for number in range(500)]
    with Server(lambda request: Reply(jsonl(*records))) as server:
        fetch = ("fetch", f"{server.url}/dump", *FAST, *STATE)
        assert vtools(*fetch).returncode == 0
        assert "unchanged 1" in vtools(*fetch).errors
        for number in range(100, 110):
            records[number] = {**records[number], "messages": chat(f"Q{number}", "another answer")}
        done = vtools(*fetch)
    assert "10 in, 10 out, 0 rejected, known 490" in done.errors
    assert Counter(ids(tmp_path / "all.jsonl")).most_common(11)[9:] == [("c109", 2), ("c0", 1)]


def test_what_a_killed_run_wrote_but_could_not_note_is_noted_and_its_torn_line_cut_off(vtools, site, tmp_path):
    names = [f"c{number}" for number in range(12)]
    fetch = ("fetch", "--sources", "-", *FAST, *STATE)
    vtools(*fetch, stdin=listed(site.urls(*names[:4])))
    others = vtools("fetch", "--sources", "-", *FAST, stdin=listed(site.urls(*names[4:8]))).stdout
    with open(tmp_path / "all.jsonl", "ab") as file:
        file.write(others + b'{"id": "torn')
    done = vtools(*fetch, stdin=listed(site.urls(*names)))
    assert "12 bytes of a torn last line were cut off" in done.errors
    assert "4 in, 4 out, 0 rejected, unchanged 4, known 4" in done.errors
    assert sorted(ids(tmp_path / "all.jsonl")) == sorted(names)
    with open(tmp_path / "all.jsonl", "ab") as file:
        file.write(b'{"id": "torn')
    assert "0 in, 0 out, 0 rejected, unchanged 12" in vtools(*fetch, stdin=listed(site.urls(*names))).errors
    assert sorted(ids(tmp_path / "all.jsonl")) == sorted(names)


def test_a_source_that_failed_waits_and_is_asked_again_when_its_time_has_come(vtools, tmp_path):
    answers = {"/bad": Reply(status=404)}
    good_one = {"id": "x", "messages": chat("Q", "A")}
    with Server(lambda request: answers.get(request.path, Reply(jsonl(good_one)))) as server:
        fetch = ("fetch", f"{server.url}/bad", f"{server.url}/good", *FAST, "--state", "s.db")
        first = vtools(*fetch)
        assert first.returncode == 0 and "2 in, 1 out, 1 rejected (unavailable 1)" in first.errors
        assert "waiting 1" in vtools(*fetch).errors
        answers.clear()
        with sqlite3.connect(tmp_path / "s.db") as database:
            database.execute("UPDATE sources SET next_try = ? WHERE status = 'failed'", (time.time() - 1,))
        good_one["id"] = "y"
        assert [record["id"] for record in vtools(*fetch).records] == ["y"]


def test_one_run_has_the_state_and_others_exit_75_or_wait(vtools, site, tmp_path):
    site.versions["x"] = 0
    held = ("fetch", *site.urls("stall"), *FAST, "--state", "s.db")
    with start(*held, cwd=tmp_path) as first:
        wait_until(lambda: "stall" in site.asked)
        busy = vtools("fetch", *site.urls("x"), *FAST, "--state", "s.db")
        assert busy.returncode == 75 and "another vtools process" in busy.errors
        with start("fetch", *site.urls("x"), *FAST, "--state", "s.db", "--wait", cwd=tmp_path) as second:
            site.ended.set()
            assert second.wait(60) == 0 and first.wait(60) == 0
            assert json.loads(second.stdout.read())["id"] == "x"


def test_stats_shows_a_state(vtools, site):
    vtools("fetch", *site.urls("one", "two", "gone"), *FAST, "--state", "s.db")
    (shown,) = vtools("stats", "s.db").records
    host = site.url.removeprefix("http://")
    assert (shown["sources"], shown["records"], shown["statuses"]) == (3, 2, {"failed": 1, "fetched": 2})
    assert shown["hosts"] == {host: {"failed": 1, "fetched": 2}}
    failure = shown["oldest_failure"]
    assert failure["uri"] == f"{site.url}/gone" and failure["detail"] == "HTTP 404 Not Found"


def test_on_a_terminal_a_state_is_a_table_too(vtools, site, tmp_path):
    vtools("fetch", *site.urls("one", "gone"), *FAST, "--state", "s.db")
    seen = on_a_terminal(command("stats", "s.db"), tmp_path)
    assert f"{site.url.removeprefix('http://')} failed" in seen and "HTTP 404 Not Found" in seen and "50.0%" in seen


def test_a_state_that_is_another_file_is_refused_and_left_as_it_is(vtools, site, tmp_path):
    (tmp_path / "text").write_text("my notes, kept for years, are no database at all\n" * 20)
    sqlite3.connect(tmp_path / "other.db").executescript("CREATE TABLE mine (x); INSERT INTO mine VALUES (1);")
    for name in ("text", "other.db"):
        before = (tmp_path / name).read_bytes()
        done = vtools("fetch", *site.urls("one"), *FAST, "--state", name)
        assert done.returncode == 1 and name in done.errors and done.stdout == b""
        assert (tmp_path / name).read_bytes() == before


def test_a_pipe_that_is_closed_early_leaves_what_it_took_in_the_state(vtools, site, tmp_path):
    names = [f"c{number}" for number in range(30)]
    with start("fetch", "--sources", "list", *FAST, "--state", "s.db", cwd=tmp_path) as fetch:
        pass
    (tmp_path / "list").write_text(listed(site.urls(*names)))
    with start("fetch", "--sources", "list", *FAST, "--state", "s.db", cwd=tmp_path) as fetch:
        taken = json.loads(fetch.stdout.readline())["id"]
        fetch.stdout.close()
        fetch.wait(60)
    rest = good("fetch", "--sources", "list", *FAST, "--state", "s.db", cwd=tmp_path)
    assert {taken, *(record["id"] for record in rest)} == set(names)


def test_of_a_crawled_export_only_the_branches_that_are_new_are_written(vtools, tmp_path):
    answers = ["a1", "a2"]

    def export(request) -> Reply:
        replies = [node(name, "q", "assistant", f"Answer {name}") for name in answers]
        return Reply(jsonl(chatgpt(node("q", None, "user", "Q"), *replies)))

    with Server(export) as server:
        fetch = ("fetch", "hf:nameless", f"{server.url}/export", "--branches", "all", *FAST, *STATE)
        done = vtools(*fetch)
        assert "2 in, 1 out, 1 rejected (unavailable 1)" in done.errors
        assert "waiting 1" in vtools(*fetch).errors
        answers.append("a3")
        assert vtools(*fetch).returncode == 0
        answers.reverse()
        assert "known 1" in vtools(*fetch).errors
    assert ids(tmp_path / "all.jsonl") == ["c1:a1", "c1:a2", "c1:a3"]
