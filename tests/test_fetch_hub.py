"""fetch: data sets of the hub, on a hub that redirects, breaks off and asks for a token."""

from __future__ import annotations

import pytest
import running
from chats import chat, jsonl
from hub import COMMIT, Hub
from rows import as_parquet

pytest.importorskip("huggingface_hub")


def rows(first: int) -> list[dict]:
    return [{"conversation_id": f"c{n}", "conversation": chat(f"Question {n}?", "word " * 50)} for n in range(first, first + 40)]  # fmt: skip


@pytest.fixture
def hub(tmp_path):
    folder = tmp_path / "hub" / "datasets" / "reeds" / "talk"
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text("# Reeds")
    (folder / "data" / "train-0.parquet").write_bytes(as_parquet(*rows(0)))
    (folder / "data" / "train-1.parquet").write_bytes(as_parquet(*rows(40)))
    (folder / "test.jsonl").write_bytes(jsonl(*rows(80)))
    with Hub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def env(hub, tmp_path):
    return {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}  # fmt: skip


@pytest.mark.parametrize(("given", "ids"), [
    ("hf:reeds/talk", range(120)),
    ("hf:reeds/talk/data@main", range(80)),
    ("hf:reeds/talk/data/*-1.parquet", range(40, 80)),
    (f"hf:reeds/talk/test.jsonl@{COMMIT}", range(80, 120)),
])  # fmt: skip
def test_a_data_set_a_folder_a_glob_or_a_file_of_it_is_read(env, given, ids):
    records = running.good("fetch", given, env=env)
    assert [record["id"] for record in records] == [f"c{number}" for number in ids]
    source = records[-1]["source"]
    assert source["uri"].startswith("hf:reeds/talk/") and source["uri"].endswith(f"@{COMMIT}")
    assert (source["license"], source["kind"]) == ("odc-by", "messages")


def test_a_download_that_breaks_off_is_finished_and_the_second_run_downloads_nothing(hub, env):
    hub.breaking = {"store/reeds/talk/test.jsonl"}
    assert len(running.good("fetch", "hf:reeds/talk/test.jsonl", env=env)) == 40
    assert hub.fetched == ["reeds/talk/test.jsonl"] * 2
    before = len(hub.fetched)
    assert len(running.good("fetch", "hf:reeds/talk/test.jsonl", env=env)) == 40
    assert len(hub.fetched) == before


def test_with_a_state_a_data_set_is_read_again_only_at_another_commit(hub, env, tmp_path):
    fetch = ("fetch", "hf:reeds/talk/test.jsonl", "--state", "s.db")
    assert len(running.good(*fetch, env=env, cwd=tmp_path)) == 40
    asked = len(hub.requests)
    again = running.run(*fetch, env=env, cwd=tmp_path)
    assert again.stdout == b"" and "0 in, 0 out, 0 rejected, unchanged 1" in again.errors
    assert not any("/resolve/" in request.path or "/store/" in request.path for request in hub.requests[asked:])
    (shown,) = running.good("stats", "s.db", cwd=tmp_path)
    assert shown["hosts"] == {"the hub": {"unchanged": 1}}


@pytest.mark.slow
def test_a_large_download_that_breaks_off_is_resumed_where_it_broke_off(hub, env):
    large = [{"id": str(number), "prompt": "Q", "completion": "word " * 200_000} for number in range(30)]
    (hub.root / "datasets/reeds/talk/large.jsonl").write_bytes(jsonl(*large))
    hub.breaking = {"store/reeds/talk/large.jsonl"}
    assert len(running.good("fetch", "hf:reeds/talk/large.jsonl", env=env)) == 30
    first, second = [each.headers.get("Range") for each in hub.requests if each.method == "GET" and "/store/" in each.path]  # fmt: skip
    assert first is None and int(second.removeprefix("bytes=").rstrip("-")) >= 10_000_000


def test_a_file_that_is_not_reached_is_not_downloaded(hub, env):
    assert len(running.good("fetch", "hf:reeds/talk", "--limit", 5, env=env)) == 5
    assert hub.fetched == ["reeds/talk/data/train-0.parquet"]


def test_a_gated_data_set_says_where_its_terms_are_and_is_read_with_a_token(hub, env):
    hub.gated = {"reeds/talk"}
    for token in ({}, {"HF_TOKEN": "hf_of_one_who_did_not"}):  # HTTP 401 and 403
        said = running.bad("fetch", "hf:reeds/talk", env={**env, **token})
        assert "accept its terms at https://huggingface.co/datasets/reeds/talk" in said and "HF_TOKEN" in said
    assert len(running.good("fetch", "hf:reeds/talk/test.jsonl", env={**env, "HF_TOKEN": "hf_x"})) == 40


def test_a_busy_hub_is_exit_75_and_with_a_state_a_reject(hub, env, tmp_path):
    hub.busy = True
    assert "the hub answers HTTP 429; try again later" in running.bad("fetch", "hf:reeds/talk", env=env, code=75)
    (tmp_path / "more.jsonl").write_bytes(jsonl({"prompt": "Q", "completion": "A"}))
    given = ("hf:reeds/talk", "more.jsonl", "--state", "s.db")
    assert len(running.good("fetch", *given, env=env, cwd=tmp_path)) == 1


@pytest.mark.parametrize(("given", "why"), [
    ("hf:reeds", "write hf:OWNER/NAME"),
    ("hf:reeds/none", "no such data set, or a private one"),
    ("hf:reeds/talk@v9", "no such revision; see https://huggingface.co/datasets/reeds/talk/commits/main"),
    ("hf:reeds/talk/nothing", "no file of that name with records in it (README.md, data/train-0.parquet"),
])  # fmt: skip
def test_what_is_not_there_is_said(env, given, why):
    assert f"vtools fetch: {given}: {why}" in running.bad("fetch", given, env=env)
