"""The pipe contract, held by real processes on real pipes, for every filter."""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import json
import os
import select
import signal
import subprocess
from pathlib import Path

import pytest
import zstandard
from chats import jsonl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import ROOT, begun, command, execute, on_a_terminal, peak, processes_of, python, wait_until

QUESTIONS = ["What is a pipe?", "And a filter?", "Who reads it?"]


def record(number: int, size: int = 40) -> dict:
    """A distinct conversation that every filter lets through."""
    text = f"Answer number {number}: " + f"word{number} " * (size // 8)
    return {
        "id": f"c{number}",
        "messages": [
            {"role": "user", "content": f"Question {number}: {QUESTIONS[number % 3]}"},
            {"role": "assistant", "content": text.strip()},
        ],
    }


@pytest.fixture(params=["fetch", "clean", "split"])
def tool(request, eot) -> list[str]:
    return [request.param, *(["--tokenizer", eot] if request.param == "split" else [])]


def read_line(stream, seconds: float = 30) -> bytes:
    ready, _, _ = select.select([stream], [], [], seconds)
    assert ready, "no line came"
    return os.read(stream.fileno(), 1 << 20)


def test_an_empty_input_gives_an_empty_output(vtools, tool):
    done = vtools(*tool)
    assert (done.returncode, done.stdout) == (0, b"")
    assert "0 in, 0 out, 0 rejected" in done.errors


def test_records_come_out_in_order_on_stdout_and_nothing_else(vtools, tool):
    done = vtools(*tool, stdin=jsonl(*map(record, range(50))))
    assert done.returncode == 0
    assert [item["id"] for item in done.records] == [f"c{number}" for number in range(50)]
    assert done.errors.count("\n") == 1, "one closing line on stderr"
    assert "50 in, 50 out, 0 rejected" in done.errors


def test_each_record_is_written_before_the_next_is_read(start, tool):
    process = start(*tool)
    for number in range(3):
        process.stdin.write(jsonl(record(number)))
        process.stdin.flush()
        assert json.loads(read_line(process.stdout))["id"] == f"c{number}"


def test_workers_do_not_hold_back_a_slow_input(start, tool):
    if tool[0] == "fetch":
        pytest.skip("fetch has no -j")
    process = start(*tool, "-j", "2")
    for number in range(2):
        process.stdin.write(jsonl(record(number)))
        process.stdin.flush()
        assert json.loads(read_line(process.stdout))["id"] == f"c{number}"


def test_the_same_bytes_for_any_number_of_jobs(vtools, tool):
    if tool[0] == "fetch":
        pytest.skip("fetch has no -j")
    data = jsonl(*[record(number, 4000 if number % 7 == 0 else 60) for number in range(1500)]) + jsonl({"messages": 3})
    one = vtools(*tool, "--rejects", "one.jsonl", stdin=data)
    two = vtools(*tool, "--rejects", "two.jsonl", "-j", "2", stdin=data, env={"PYTHONHASHSEED": "7"})
    assert one.stdout == two.stdout
    assert one.errors == two.errors


@pytest.mark.slow
def test_workers_hold_few_records_in_memory_however_long_they_are(tmp_path):
    with open(tmp_path / "long.jsonl", "wb") as file:
        for number in range(200):
            file.write(jsonl(record(number, 1_000_000)))
    assert peak("clean", "-j", 2, "-q", "long.jsonl", "-o", "result.jsonl", cwd=tmp_path) < 150 << 20


def test_workers_read_only_so_far_ahead_of_a_reader_that_waits(start):
    process = start("clean", "-j", 2)
    os.set_blocking(process.stdin.fileno(), False)
    taken, number = 0, 0
    while taken < 100_000_000 and not (taken and stuck(process)):
        with contextlib.suppress(BlockingIOError):
            taken += os.write(process.stdin.fileno(), jsonl(record(number, 4000)))
            number += 1
    assert 100_000 < taken < 40_000_000


def stuck(process) -> bool:
    """Whether its input is full and it and its workers all sleep, and go on sleeping."""
    for _ in range(40):
        if select.select([], [process.stdin], [], 0.05)[1]:
            return False
        states = {Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in processes_of(process.pid)}  # fmt: skip
        if states != {"S"}:
            return False
    return True


def test_a_reader_that_goes_away_kills_the_filter_quietly(start, tool, tmp_path):
    (tmp_path / "many.jsonl").write_bytes(jsonl(*[record(number, 400) for number in range(3000)]))
    process = start(*tool, "many.jsonl")
    os.read(process.stdout.fileno(), 10)
    process.stdout.close()
    assert process.wait(30) == -signal.SIGPIPE
    assert process.stderr.read() == b""


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_filter_that_waits_for_input_notices_that_its_reader_has_gone(start, tool, jobs):
    if jobs == "2" and tool[0] == "fetch":
        pytest.skip("fetch has no -j")
    process = start(*tool, *(["-j", jobs] if jobs == "2" else []))
    process.stdin.write(jsonl(record(1)))
    process.stdin.flush()
    read_line(process.stdout)
    process.stdout.close()
    assert process.wait(30) == -signal.SIGPIPE
    assert process.stderr.read() == b""


def test_a_filter_that_has_stopped_writing_notices_that_its_reader_has_gone(start, eot):
    process = start("clean")  # everything after the first is a duplicate
    one = jsonl(record(1))
    process.stdin.write(one)
    process.stdin.flush()
    read_line(process.stdout)
    process.stdout.close()
    with contextlib.suppress(BrokenPipeError):
        wait_until(lambda: process.stdin.write(one) and process.stdin.flush())
    assert process.wait(30) == -signal.SIGPIPE


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_filter_by_that_signal_and_leaves_no_litter(start, tool, tmp_path, signum):
    (tmp_path / "result.jsonl").write_text("old\n")
    process = start(*tool, "-o", "result.jsonl")
    process.stdin.write(jsonl(record(1)))
    process.stdin.flush()
    wait_until((tmp_path / ".result.jsonl.part").exists)
    process.send_signal(signum)
    assert process.wait(30) == -signum
    assert process.stderr.read() == b""
    assert (tmp_path / "result.jsonl").read_text() == "old\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.jsonl"]


AT_EVERY_STEP = """
import contextlib, os, orjson, pathlib, signal, sys
from vtools import process
from vtools.records import jsonl

def write(step):
    def trace(frame, event, arg):
        nonlocal step
        step -= event in ("call", "line")
        if step == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return trace
    sys.settrace(trace)
    with jsonl.output("result") as out:
        out.write("new")
    sys.settrace(None)

def enter(manager):
    stream = next(manager.gen)
    os.kill(os.getpid(), signal.SIGTERM)
    return stream

def write_but_enter(step):
    contextlib._GeneratorContextManager.__enter__ = enter
    write(0)

for step in range(10_000):
    pathlib.Path("result").write_text("old")
    child = os.fork()
    if not child:
        process.command("test", write if step else write_but_enter)(step)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(code, pathlib.Path("result").read_text().strip(), *os.listdir("."))
    if code == 0:
        break
"""


def test_a_signal_at_any_step_of_writing_a_file_leaves_the_old_or_the_new_one_and_nothing_else(tmp_path):
    done = python(AT_EVERY_STEP, cwd=tmp_path)
    *ended, finished = done.stdout.splitlines()
    assert (done.errors, finished) == ("", b'0 "new" result')
    assert len(ended) > 200 and set(ended) == {b"-15 old result", b'-15 "new" result'}


def test_ctrl_c_ends_the_shell_loop_around_a_filter(start, tool, tmp_path):
    """bash ends a loop only if its command died of SIGINT; an exit code of 130 would let it go on."""
    script = f"for i in 1 2 3; do echo round >> rounds; {' '.join(command(*tool))} -o result.jsonl < fifo; done"
    os.mkfifo(tmp_path / "fifo")
    with begun(["bash", "-c", script], cwd=tmp_path) as shell, open(tmp_path / "fifo", "wb") as fifo:
        fifo.write(jsonl(record(1)))
        fifo.flush()
        wait_until((tmp_path / ".result.jsonl.part").exists)  # the filter is inside its loop
        os.killpg(shell.pid, signal.SIGINT)
        shell.wait(30)
    assert (tmp_path / "rounds").read_text() == "round\n"


def test_killed_with_9_a_filter_leaves_no_worker_and_the_rerun_takes_over(start, vtools, tool, tmp_path):
    jobs = ["-j", "2"] if tool[0] != "fetch" else []
    process = start(*tool, *jobs, "-o", "result.jsonl", "--rejects", "rejects.jsonl")
    process.stdin.write(jsonl(record(1)))
    process.stdin.flush()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_until(lambda: (tmp_path / ".result.jsonl.part").exists() and len(children.read_text().split()) == len(jobs))
    workers = [Path(f"/proc/{child}") for child in children.read_text().split()]
    process.kill()
    process.wait()
    wait_until(lambda: not any(worker.exists() for worker in workers))
    assert not (tmp_path / "result.jsonl").exists()
    done = vtools(*tool, *jobs, "-o", "result.jsonl", stdin=jsonl(record(1)))
    assert done.returncode == 0
    assert json.loads((tmp_path / "result.jsonl").read_text())["id"] == "c1"
    assert not (tmp_path / ".result.jsonl.part").exists()


def test_two_runs_on_one_output_do_not_mix(start, vtools, tool, tmp_path):
    first = start(*tool, "-o", "result.jsonl")
    first.stdin.write(jsonl(record(1)))
    first.stdin.flush()
    wait_until((tmp_path / ".result.jsonl.part").exists)
    second = vtools(*tool, "-o", "result.jsonl", stdin=jsonl(record(2)))
    assert second.returncode == 75
    first.stdin.close()
    assert first.wait(30) == 0
    assert json.loads((tmp_path / "result.jsonl").read_text())["id"] == "c1"


def test_a_line_that_is_not_json_stops_the_run_after_everything_before_it(vtools, tool):
    done = vtools(*tool, stdin=jsonl(record(1), record(2)) + b"not json\n" + jsonl(record(3)))
    assert done.returncode == 1
    assert [item["id"] for item in done.records] == ["c1", "c2"]
    assert done.errors.startswith(f"vtools {tool[0]}: stdin:3: ")
    assert done.errors.count("\n") == 1


def test_with_rejects_a_bad_line_is_saved_verbatim_and_the_run_goes_on(vtools, tool, tmp_path):
    bad = b'{"id": "x", "messages": [\xff]}'
    done = vtools(
        *tool,
        "--rejects",
        "rejects.jsonl",
        "--stats",
        "stats.json",
        stdin=jsonl(record(1)) + bad + b"\n" + jsonl(record(2)),
    )
    assert done.returncode == 0
    assert [item["id"] for item in done.records] == ["c1", "c2"]
    (reject,) = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert (reject["stage"], reject["reason"], reject["line"], reject["source"]) == (tool[0], "bad_json", 2, "stdin")
    assert base64.b64decode(reject["raw_b64"]) == bad
    stats = json.loads((tmp_path / "stats.json").read_text())
    assert (stats["in"], stats["out"], stats["rejected"], stats["reasons"]) == (3, 2, 1, {"bad_json": 1})


NOT_OBJECTS = [b"42", b"null", b'"text"', b"[1, 2]"]


@pytest.mark.parametrize("raw", NOT_OBJECTS)
def test_a_json_value_that_is_no_object_is_named_as_such(vtools, tool, tmp_path, raw):
    done = vtools(*tool, "--rejects", "rejects.jsonl", stdin=jsonl(record(1)) + raw + b"\n" + jsonl(record(2)))
    assert [item["id"] for item in done.records] == ["c1", "c2"]
    assert json.loads((tmp_path / "rejects.jsonl").read_text())["reason"] == "not_object"


def test_blank_lines_bom_crlf_and_a_missing_last_newline_are_fine(vtools, tool):
    bom = b"\xef\xbb\xbf"
    data = (
        bom
        + jsonl(record(1)).replace(b"\n", b"\r\n")
        + b"\r\n\n  \n"
        + bom
        + jsonl(record(2))
        + jsonl(record(3)).rstrip()
    )
    done = vtools(*tool, stdin=data)
    assert done.returncode == 0
    assert [item["id"] for item in done.records] == ["c1", "c2", "c3"]


def test_lone_surrogates_nan_and_huge_integers_are_repaired_or_kept(vtools, tool):
    odd = (
        json.dumps(record(1))[:-1]
        + ', "score": NaN, "big": 123456789012345678901234567890, "small": -9223372036854775809}'
    )
    odd = odd.replace("Answer", "Answer \\ud83d and \\ud83d\\ude00")
    done = vtools(*tool, stdin=odd + "\n")
    assert done.returncode == 0
    (item,) = done.records
    assert item["messages"][1]["content"].startswith("Answer \ufffd and \U0001f600")
    assert item["score"] is None
    assert (item["big"], item["small"]) == (123456789012345678901234567890, -9223372036854775809)
    assert "repaired 1" in done.errors


@pytest.mark.timeout(700)
@pytest.mark.parametrize("megabytes", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_a_very_long_line_goes_through(vtools, tool, megabytes):
    long = record(1)
    long["messages"][1]["content"] = "many words " * (megabytes * 100_000)
    done = vtools(*tool, stdin=jsonl(long, record(2)), timeout=600)
    assert done.returncode == 0
    assert [item["id"] for item in done.records] == ["c1", "c2"]
    assert done.records[0]["messages"][1]["content"].strip() == long["messages"][1]["content"].strip()


def zst(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def parquet(data: bytes) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    files = pytest.importorskip("pyarrow.parquet")
    sink = io.BytesIO()
    files.write_table(pyarrow.Table.from_pylist([json.loads(line) for line in data.splitlines()]), sink)
    return sink.getvalue()


def array(data: bytes) -> bytes:
    return json.dumps([json.loads(line) for line in data.splitlines()], indent=1).encode()


FORMS = {
    "gzip": gzip.compress,
    "two gzip members": lambda data: gzip.compress(data[:100]) + gzip.compress(data[100:]),
    "zstd": zst,
    "parquet": parquet,
    "array": array,
    "gzip of an array": lambda data: gzip.compress(array(data)),
    "two arrays": lambda data: array(data[: data.index(b"\n") + 1]) + b"\n" + array(data[data.index(b"\n") + 1 :]),
    "compact array with a BOM": lambda data: b"\xef\xbb\xbf [" + data.strip().replace(b"\n", b",") + b"]",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("by", ["stdin", "file"])
def test_every_packing_is_read_by_its_bytes_not_by_its_name(vtools, tool, tmp_path, form, by):
    data = jsonl(*map(record, range(20)))
    packed = FORMS[form](data)
    (tmp_path / "input").write_bytes(packed)
    done = vtools(*tool, "input") if by == "file" else vtools(*tool, "-", stdin=packed)
    assert done.returncode == 0, done.errors
    assert [item["id"] for item in done.records] == [f"c{number}" for number in range(20)]


def test_an_array_element_that_is_broken_does_not_lose_the_others(vtools, tool, tmp_path):
    items = [
        json.dumps(record(1)),
        '{"id": "x", nonsense: "a ] b"}',
        json.dumps(record(2)),
        "[[1], {}]",
        json.dumps(record(3)),
    ]
    done = vtools(*tool, "--rejects", "rejects.jsonl", stdin="[" + ",\n".join(items) + "]")
    assert done.returncode == 0
    assert [item["id"] for item in done.records] == ["c1", "c2", "c3"]
    rejects = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert [(item["reason"], item["line"]) for item in rejects] == [("bad_json", 2), ("not_object", 4)]


def test_what_follows_an_array_is_read_as_lines_and_not_lost(vtools, tool, tmp_path):
    data = b"[" + jsonl(record(1)).strip() + b"]\n" + jsonl(record(2)) + b"not json\n" + jsonl(record(3))
    done = vtools(*tool, "--rejects", "rejects.jsonl", stdin=data)
    assert [item["id"] for item in done.records] == ["c1", "c2", "c3"]
    assert json.loads((tmp_path / "rejects.jsonl").read_text())["reason"] == "bad_json"
    assert "4 in, 3 out, 1 rejected" in done.errors


def test_an_input_is_never_overwritten_by_its_own_rejects(vtools, tool, tmp_path):
    (tmp_path / "in.jsonl").write_bytes(jsonl(record(1)))
    done = vtools(*tool, "in.jsonl", "--rejects", "in.jsonl")
    assert done.returncode == 2
    assert (tmp_path / "in.jsonl").read_bytes() == jsonl(record(1))


def test_an_output_through_a_link_writes_what_the_link_points_to(vtools, tool, tmp_path):
    (tmp_path / "real.jsonl").write_text("old\n")
    (tmp_path / "link.jsonl").symlink_to("real.jsonl")
    assert vtools(*tool, "-o", "link.jsonl", stdin=jsonl(record(1))).returncode == 0
    assert (tmp_path / "link.jsonl").is_symlink()
    assert json.loads((tmp_path / "real.jsonl").read_text())["id"] == "c1"


def test_closed_streams_do_not_turn_messages_into_data(tool, tmp_path):
    for closed in ("2>&-", ">&- -o result.jsonl"):
        script = f"{' '.join(command(*tool))} {closed}"
        done = execute(["bash", "-c", script], stdin=jsonl(record(1)), cwd=tmp_path)
        assert done.returncode == 0
        assert b"Traceback" not in done.stderr
        assert all(json.loads(line)["id"] == "c1" for line in done.stdout.splitlines())


TORN = {
    "array": lambda data: array(data)[:-120],
    "array without its bracket": lambda data: array(data)[:-1],
    "line": lambda data: data[:-40],
    "gzip": lambda data: gzip.compress(data)[:-3000],
    "zstd": lambda data: zst(data)[:-50_000],
}


@pytest.mark.parametrize("form", TORN)
def test_a_torn_input_gives_every_whole_record_then_says_where_it_tore(vtools, tool, tmp_path, form):
    import random

    noise = random.Random(1)
    made = [record(number) for number in range(300)]
    for item in made:
        item["noise"] = noise.randbytes(900).hex()  # several compressed blocks
    data = TORN[form](jsonl(*made))
    plain = vtools(*tool, stdin=data)
    saved = vtools(*tool, "--rejects", "rejects.jsonl", stdin=data)
    assert (plain.returncode, saved.returncode) == (1, 0)
    assert plain.stdout == saved.stdout
    ids = [item["id"] for item in saved.records]
    assert ids == [f"c{number}" for number in range(len(ids))]
    assert len(ids) == 300 if form == "array without its bracket" else 100 < len(ids) < 300
    assert f"stdin:{len(ids) + 1}: " in plain.errors
    (reject,) = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert (reject["reason"], reject["line"]) == ("torn_input", len(ids) + 1)
    assert f"{len(ids) + 1} in, {len(ids)} out, 1 rejected" in saved.errors


def test_a_file_that_is_not_there_is_one_line_and_exit_1(vtools, tool):
    done = vtools(*tool, "missing.jsonl")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.errors == f"vtools {tool[0]}: missing.jsonl: No such file or directory\n"


def test_an_unknown_option_is_exit_2(vtools, tool):
    assert vtools(*tool, "--no-such-option").returncode == 2


def test_a_full_disk_is_one_line_and_exit_1(start, tool):
    with open("/dev/full", "wb") as full:
        process = start(*tool, stdout=full)
        _, errors = process.communicate(jsonl(record(1)), 30)
    assert process.returncode == 1
    assert errors.decode() == f"vtools {tool[0]}: No space left on device\n"


def test_several_operands_are_read_in_order_and_dash_is_stdin(vtools, tool, tmp_path):
    (tmp_path / "a").write_bytes(jsonl(record(1)))
    (tmp_path / "b").write_bytes(jsonl(record(3)))
    done = vtools(*tool, "a", "-", "b", stdin=jsonl(record(2)))
    assert [item["id"] for item in done.records] == ["c1", "c2", "c3"]


def test_an_output_file_is_whole_or_not_there(vtools, tool, tmp_path):
    (tmp_path / "result.jsonl").write_text("old\n")
    broken = vtools(*tool, "-o", "result.jsonl", stdin=jsonl(record(1)) + b"oops\n")
    assert broken.returncode == 1
    assert (tmp_path / "result.jsonl").read_text() == "old\n"
    whole = vtools(*tool, "-o", "result.jsonl", stdin=jsonl(record(1)))
    assert (whole.returncode, whole.stdout) == (0, b"")
    assert json.loads((tmp_path / "result.jsonl").read_text())["id"] == "c1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.jsonl"]


def test_it_runs_under_cron_without_locale_terminal_or_home(tool, tmp_path):
    done = subprocess.run(
        command(*tool, "-q"),
        input=json.dumps(record(1) | {"note": "é中🙂"}, ensure_ascii=False).encode(),
        capture_output=True,
        env={"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii", "VTOOLS_CACHE": os.environ["VTOOLS_CACHE"]},
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["note"] == "é中🙂"


def test_progress_is_drawn_on_a_terminal_only(tool, tmp_path):
    (tmp_path / "many.jsonl").write_bytes(jsonl(*[record(number) for number in range(2000)]))
    seen = on_a_terminal(command(*tool, "many.jsonl", "-o", "result.jsonl"), tmp_path)
    assert f"vtools {tool[0]}: " in seen
    assert " records [" in seen


def test_records_of_a_wholly_unknown_shape_are_an_error_not_an_empty_file(vtools, tool):
    done = vtools(*tool, stdin=jsonl({"a": 1}, {"b": 2}))
    assert done.returncode == 1
    assert "stdin:1: bad_schema" in done.errors


JUNK = st.one_of(
    st.builds(lambda number: jsonl(record(number)), st.integers(0, 10**6)),
    st.sampled_from([b"null\n", b"{}\n", b"\n", b"{", b'{"messages": null}\n', b'{"conversations": []}\n', b"\xff\xfe\n", b"[]\n"]),
    st.binary(max_size=20).filter(lambda raw: not raw.startswith((b"\x1f\x8b", b"PAR1"))).map(lambda raw: raw + b"\n"),
    st.recursive(st.none() | st.booleans() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["messages", "id", "from", "value", "role", "content", "items"]), inner, max_size=4), max_leaves=8).map(lambda value: json.dumps(value).encode() + b"\n"),
)  # fmt: skip


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(chunks=st.lists(JUNK, max_size=40))
def test_in_equals_out_plus_rejected_for_any_input(vtools, tool, tmp_path, chunks):
    done = vtools(*tool, "--rejects", "rejects.jsonl", "--stats", "stats.json", stdin=b"".join(chunks))
    assert done.returncode == 0, done.errors
    stats = json.loads((tmp_path / "stats.json").read_text())
    rejects = (tmp_path / "rejects.jsonl").read_bytes().splitlines()
    assert stats["in"] == stats["out"] + stats["rejected"]
    assert stats["rejected"] == len(rejects) == sum(stats["reasons"].values())
    if tool[0] != "split":
        assert stats["out"] == len(done.records)
