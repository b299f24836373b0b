"""fetch: a mirror of ShareGPT with its lists, and ChatGPT's share links, on a server."""

from __future__ import annotations

import json

import pytest
import running
from loopback import Reply, Request, Server
from source_files import SHAREGPT, TALK, chatgpt, next_page, node, router_page, said, shared

FAST = ("--rate", 1000)


@pytest.fixture(params=[0, 1])
def mirror(request):
    """One that counts the pages of its list from 0 or from 1; a conversation may move to the next page meanwhile."""
    pages = [["a", "b"], ["b", "c"], ["d"]]

    def reply(asked: Request) -> Reply:
        path, _, query = asked.path.partition("?")
        if path == "/m/api/conversations" and query.startswith("type=top&page="):
            number = max(0, int(query.rpartition("=")[2]) - request.param)
            return Reply.json([{"id": name, "title": "", "saves": 1} for name in pages[number]] if number < 3 else [])
        if path.startswith("/m/c/"):
            return Reply(next_page({"props": {"pageProps": {**SHAREGPT, "id": path.removeprefix("/m/c/")}}}))
        return Reply(status=404)

    with Server(reply) as server:
        server.url += "/m"
        yield server


def test_a_mirror_gives_all_conversations_of_its_list_each_once(mirror, tmp_path):
    fetch = ("fetch", "sharegpt:top", "--api-base", mirror.url, *FAST, "--state", "s.db")
    records = running.good(*fetch, cwd=tmp_path)
    assert [record["id"] for record in records] == ["a", "b", "c", "d"]
    assert records[0]["source"]["uri"] == f"{mirror.url}/c/a"
    assert running.good(*fetch, cwd=tmp_path) == []


def test_a_conversation_of_a_mirror_is_asked_for_by_its_id(mirror):
    (record,) = running.good("fetch", "sharegpt:2wtLdZm", "--api-base", mirror.url + "/", *FAST)
    assert record["id"] == "2wtLdZm" and [said(message)[1] for message in record["messages"]] == TALK


@pytest.mark.parametrize(("given", "code", "why"), [
    (("sharegpt:x",), 2, "ShareGPT's site is gone; name a mirror"),
    (("x.json", "--api-base", "https://mirror.example"), 2, "no source is one"),
    (("sharegpt:x", "--api-base", "mirror.example"), 2, "write the URL of a mirror"),
])  # fmt: skip
def test_a_mirror_is_named_where_it_is_needed_and_only_there(given, code, why):
    assert why in running.bad("fetch", *given, code=code)


def test_a_mirror_without_that_list_is_said():
    with Server(lambda request: Reply(status=404)) as server:
        said = running.bad("fetch", "sharegpt:new", "--api-base", server.url, *FAST)
    assert "sharegpt:new: HTTP 404" in said


def test_share_links_of_both_forms_are_read_from_a_server():
    nodes = [node(str(place), str(place - 1) if place else None, ("user", "assistant")[place % 2], text) for place, text in enumerate(TALK)]  # fmt: skip
    data = shared(chatgpt(*nodes))
    pages = {
        "/share/old": next_page({"props": {"pageProps": {"serverResponse": {"data": data}}}}),
        "/share/new": router_page(data),
    }

    def reply(request: Request) -> Reply:
        page = pages.get(request.path)
        return Reply(page, headers={"Content-Type": "text/html"}) if page else Reply(status=404)

    with Server(reply) as server:
        records = running.good("fetch", *(server.url + path for path in pages), *FAST)
        assert [json.dumps(list(map(said, record["messages"]))) for record in records].count(json.dumps([[("user", "assistant")[place % 2], text] for place, text in enumerate(TALK)])) == 2  # fmt: skip
        assert [record["source"]["uri"] for record in records] == [server.url + path for path in pages]
