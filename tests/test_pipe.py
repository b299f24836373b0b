"""The pipe contract, held by real processes on real pipes, for every filter: order, workers, outputs and exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
from pathlib import Path

import pytest
from chats import jsonl
from piping import read_line, record
from running import ROOT, command, execute, on_a_terminal, peak, processes_of


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
        pytest.skip("the jobs of fetch are downloads")
    process = start(*tool, "-j", "2")
    for number in range(2):
        process.stdin.write(jsonl(record(number)))
        process.stdin.flush()
        assert json.loads(read_line(process.stdout))["id"] == f"c{number}"


def test_the_same_bytes_for_any_number_of_jobs(vtools, tool):
    if tool[0] == "fetch":
        pytest.skip("the jobs of fetch are downloads")
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
