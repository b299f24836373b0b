"""`vtools chat`: as a filter through real pipes, and in a real (pseudo) terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import threading
import time

import pytest
import tiny
from loopback import Break, Chat, Status
from running import command, environment, wait_until


def echo(messages, body):
    return f"echo {messages[-1]['content']}"


def questions(number: int) -> str:
    return "".join(json.dumps({"id": f"q{n}", "turns": [f"question {n}"]}) + "\n" for n in range(number))


def without_ms(data: bytes) -> bytes:
    return re.sub(rb'"ms":\d+', b'"ms":0', data)


def lines(path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_every_shape_of_a_question_is_asked(vtools):
    shapes = [
        {"id": "ours", "turns": ["one"], "category": "math", "reference": ["1"]},
        {"question_id": 7, "category": "generic", "turns": ["two"]},
        {"question_id": 8, "text": "three", "category": "generic"},
        {"prompt": "four"},
        {"prompt": [{"role": "user", "content": "five"}]},
        {"messages": [{"role": "user", "content": "before"}, {"role": "assistant", "content": "so"},
                      {"role": "user", "content": "six"}, {"role": "assistant", "content": "old answer"}]},
        {"id": "share", "conversations": [{"from": "human", "value": "seven"}, {"from": "gpt", "value": "old"}]},
        {"instruction": "eight", "input": "with this", "output": "old"},
        {"id": "again", "model": "other", "question": ["nine"], "turns": ["an old answer"]},
    ]  # fmt: skip
    with Chat(echo) as server:
        done = vtools("chat", "--base-url", server.url, stdin="\n".join(map(json.dumps, shapes)))
    assert done.returncode == 0, done.errors
    asked = ["one", "two", "three", "four", "five", "six", "seven", "eight\n\nwith this", "nine"]
    assert [record["turns"] for record in done.records] == [[f"echo {text}"] for text in asked]
    assert [record["question"] for record in done.records] == [[text] for text in asked]
    assert [record["id"] for record in done.records][:3] == ["ours", "7", "8"]
    assert [record["id"] for record in done.records][-1] == "again"
    assert done.records[0]["category"] == "math" and done.records[0]["reference"] == ["1"]
    assert done.records[5]["context"] == shapes[5]["messages"][:2]
    assert next(body["messages"] for body in server.bodies if len(body["messages"]) > 1) == shapes[5]["messages"][:3]
    assert "9 in, 9 out, 0 rejected" in done.errors


def test_a_question_of_several_turns_is_asked_turn_by_turn(vtools):
    with Chat(lambda messages, body: f"answer {len(messages)}") as server:
        done = vtools("chat", "--base-url", server.url, stdin='{"id":"q","turns":["first","second"]}')
    (record,) = done.records
    assert record["turns"] == ["answer 1", "answer 3"]
    assert record["finish"] == ["stop", "stop"]
    assert record["usage"] == {"in": 6, "out": 16}
    assert [message["content"] for message in server.bodies[1]["messages"]] == ["first", "answer 1", "second"]


def test_answers_keep_the_order_of_the_questions_however_many_are_asked_at_a_time(vtools):
    together, before = 1, 0

    def reply(messages, body):
        number = int(messages[-1]["content"].split()[-1])
        if number % 8 == 0:  # seven others are asked before it is answered
            wait_until(lambda: len(server.bodies) - before >= number + together)
        return f"answer {number}"

    with Chat(reply) as server:
        one = vtools("chat", "--base-url", server.url, "-j", 1, stdin=questions(24))
        together, before = 8, 24
        many = vtools("chat", "--base-url", server.url, "-j", 8, stdin=questions(24))
    assert [record["id"] for record in many.records] == [f"q{n}" for n in range(24)]
    assert without_ms(one.stdout) == without_ms(many.stdout)


def test_an_answer_is_written_before_the_next_question_is_there(start):
    with Chat(echo) as server:
        chat = start("chat", "--base-url", server.url)
        for number in range(3):
            chat.stdin.write(json.dumps({"id": str(number), "prompt": "x"}).encode() + b"\n")
            chat.stdin.flush()
            assert json.loads(chat.stdout.readline())["id"] == str(number)
        chat.stdin.close()
        assert chat.wait(30) == 0


def test_one_failed_question_costs_the_others_nothing(vtools, tmp_path):
    def reply(messages, body):
        if messages[-1]["content"] == "question 3":
            raise Status(400, {"error": {"message": "too long for me"}})
        return "fine"

    with Chat(reply) as server:
        done = vtools("chat", "--base-url", server.url, "--rejects", "no.jsonl", "-o", "a.jsonl", stdin=questions(6))
        assert done.returncode == 1
        assert "1 of 6 failed" in done.errors and "too long for me" in done.errors and "Traceback" not in done.errors
        answers = (tmp_path / "a.jsonl").read_bytes()
        assert [json.loads(line)["id"] for line in answers.splitlines()] == ["q0", "q1", "q2", "q4", "q5"]
        (reject,) = map(json.loads, (tmp_path / "no.jsonl").read_bytes().splitlines())
        assert (reject["reason"], reject["id"], reject["line"]) == ("unanswered", "q3", 4)
        # The same command again asks for the one that failed alone.
        server.answer, before = echo, len(server.bodies)
        done = vtools("chat", "--base-url", server.url, "-o", "a.jsonl", stdin=questions(6))
        assert done.returncode == 0
        assert [body["messages"][-1]["content"] for body in server.bodies[before:]] == ["question 3"]
    assert lines(tmp_path / "a.jsonl") == 6


def test_a_bad_line_ends_the_run_unless_rejects_are_saved(vtools, tmp_path):
    text = '{"id":"a","prompt":"x"}\n{broken\n{"id":"b","other":1}\n{"id":"c","prompt":"y"}\n'
    with Chat(echo) as server:
        stopped = vtools("chat", "--base-url", server.url, stdin=text)
        saved = vtools("chat", "--base-url", server.url, "--rejects", "no.jsonl", "--stats", "s.json", stdin=text)
    assert stopped.returncode == 1 and "stdin:2: " in stopped.errors
    assert [record["id"] for record in stopped.records] == ["a"]
    assert saved.returncode == 0
    assert [record["id"] for record in saved.records] == ["a", "c"]
    rejects = [json.loads(line) for line in (tmp_path / "no.jsonl").read_bytes().splitlines()]
    assert [reject["reason"] for reject in rejects] == ["bad_json", "bad_schema"]
    stats = json.loads((tmp_path / "s.json").read_bytes())
    assert (stats["in"], stats["out"], stats["rejected"]) == (4, 2, 2)


def test_a_run_killed_twice_asks_only_for_the_rest_and_ends_with_the_same_bytes(vtools, start, tmp_path):
    (tmp_path / "q.jsonl").write_text(questions(12))
    journal = tmp_path / "a.jsonl.journal"
    release = threading.Event()
    held: set[int] = set()

    def number(body) -> int:
        return int(body["messages"][-1]["content"].split()[-1])

    def reply(messages, body):
        if number(body) in held:
            release.wait(60)
        return echo(messages, body)

    with Chat(reply) as server:
        ask = ("chat", "q.jsonl", "--base-url", server.url, "--model", "m", "-o")
        assert vtools(*ask, "whole.jsonl").returncode == 0

        def kill_after(records: int, asked: int) -> None:
            asked += len(server.bodies)
            chat = start(*ask, "a.jsonl", "-j", 4)
            # With all four of its requests there: none may arrive later, as if the next run had made it.
            wait_until(lambda: lines(journal) == records and len(server.bodies) == asked)
            chat.kill()
            chat.wait()

        held = {2, 7, 8, 9, 10, 11}
        kill_after(6, asked=10)  # 0, 1, 3, 4, 5, 6 are answered, others on their way
        assert not (tmp_path / "a.jsonl").exists()
        with open(journal, "ab") as stream:
            stream.write(b'{"id":"q2","torn')  # what a power cut may leave
        held = {7, 8, 9, 10, 11}
        kill_after(7, asked=5)
        held, before = set(), len(server.bodies)
        release.set()
        done = vtools(*ask, "a.jsonl")
        assert done.returncode == 0, done.errors
        assert sorted(map(number, server.bodies[before:])) == [7, 8, 9, 10, 11]
    assert "reused 7" in done.errors
    assert without_ms((tmp_path / "a.jsonl").read_bytes()) == without_ms((tmp_path / "whole.jsonl").read_bytes())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "q.jsonl", "whole.jsonl"]


def test_a_finished_run_asks_nothing_and_a_changed_one_asks_anew(vtools, tmp_path):
    with Chat(echo) as server:
        ask = ("chat", "--base-url", server.url, "-o", "a.jsonl")
        assert vtools(*ask, stdin=questions(3)).returncode == 0
        first = (tmp_path / "a.jsonl").read_bytes()
        assert vtools(*ask, stdin=questions(3)).returncode == 0
        assert len(server.bodies) == 3
        assert (tmp_path / "a.jsonl").read_bytes() == first
        assert vtools(*ask, "--temperature", 0, stdin=questions(3)).returncode == 0
        assert len(server.bodies) == 6


def test_the_same_question_twice_has_two_answers(vtools, tmp_path):
    count = iter(range(9))
    with Chat(lambda messages, body: f"answer {next(count)}") as server:
        ask = ("chat", "--base-url", server.url, "-o", "a.jsonl", "-j", 1)
        assert vtools(*ask, stdin=questions(1) * 3).returncode == 0
        first = (tmp_path / "a.jsonl").read_bytes()
        assert vtools(*ask, stdin=questions(1) * 3).returncode == 0
    assert [json.loads(line)["turns"] for line in first.splitlines()] == [["answer 0"], ["answer 1"], ["answer 2"]]
    assert (tmp_path / "a.jsonl").read_bytes() == first
    assert len(server.bodies) == 3


def test_two_runs_on_one_file_do_not_meet(vtools, start, tmp_path):
    release = threading.Event()

    def reply(messages, body):
        release.wait(60)
        return "late"

    with Chat(reply) as server:
        ask = ("chat", "--base-url", server.url, "-o", "a.jsonl")
        (tmp_path / "q.jsonl").write_text(questions(2))
        first = start(*ask, "q.jsonl")
        wait_until(lambda: server.bodies)
        second = vtools(*ask, "q.jsonl")
        assert second.returncode == 75
        assert "another vtools process" in second.errors
        release.set()
        assert first.wait(60) == 0
    assert lines(tmp_path / "a.jsonl") == 2


@pytest.mark.parametrize("out", [(), ("-o", "a.jsonl")])
def test_ctrl_c_ends_by_the_signal_without_a_word_and_keeps_what_is_paid_for(start, tmp_path, out):
    release = threading.Event()

    def reply(messages, body):
        if messages[-1]["content"] != "question 0":
            release.wait(60)
        return "late"

    (tmp_path / "q.jsonl").write_text(questions(9))
    with Chat(reply) as server:
        chat = start("chat", "q.jsonl", "--base-url", server.url, *out)
        wait_until(lambda: len(server.bodies) >= 5)
        chat.send_signal(signal.SIGINT)
        assert chat.wait(30) == -signal.SIGINT
        printed, errors = chat.communicate()
        release.set()
    assert errors == b""
    kept = (tmp_path / "a.jsonl.journal").read_bytes() if out else printed
    assert [json.loads(line)["id"] for line in kept.splitlines()] == ["q0"]


def test_an_error_that_all_would_meet_stops_at_once(vtools, tmp_path):
    def reply(messages, body):
        raise Status(401, {"error": {"message": "bad key"}})

    with Chat(reply) as server:
        done = vtools("chat", "--base-url", server.url, "-o", "a.jsonl", stdin=questions(50))
    assert done.returncode == 1
    assert done.errors.count("\n") == 1 and "HTTP 401: bad key; check OPENAI_API_KEY" in done.errors
    assert len(server.bodies) < 20
    assert list(tmp_path.iterdir()) == []


def test_lines_of_text_are_questions_and_only_the_answers_are_printed(vtools):
    with Chat(echo) as server:
        done = vtools("chat", "--text", "--base-url", server.url, stdin="[one]\n\ntwo, 二\n")
    assert done.stdout.decode() == "echo [one]\necho two, 二\n"


def test_the_system_message_stands_where_there_is_none(vtools):
    own = {"messages": [{"role": "system", "content": "mine"}, {"role": "user", "content": "b"}]}
    with Chat(echo) as server:
        vtools("chat", "--base-url", server.url, "-j", 1, "--system", "yours", "--temperature", 0, "--max-tokens", 9,
               "--top-p", 0.5, "--seed", 4, stdin='{"prompt":"a"}\n' + json.dumps(own))  # fmt: skip
    assert [body["messages"][0]["content"] for body in server.bodies] == ["yours", "mine"]
    sampling = {name: server.bodies[0][name] for name in ("temperature", "max_tokens", "top_p", "seed")}
    assert sampling == {"temperature": 0, "max_tokens": 9, "top_p": 0.5, "seed": 4}


def test_a_dry_run_counts_and_asks_nothing(vtools):
    with Chat(echo) as server:
        done = vtools("chat", "-n", "--base-url", server.url, stdin=questions(3) + '{"id":1,"turns":["a","b"]}')
    assert done.returncode == 0 and done.stdout == b"" and server.bodies == []
    assert "4 questions (5 turns)" in done.errors


def test_a_model_in_a_folder_answers_without_a_server(vtools, tmp_path):
    pytest.importorskip("torch")
    tiny.make(tmp_path / "model")
    ask = ("chat", "--model", "./model", "--temperature", 0, "--max-tokens", 8, "-j", 2)
    first = vtools(*ask, stdin=questions(3))
    assert first.returncode == 0, first.errors
    assert [record["id"] for record in first.records] == ["q0", "q1", "q2"]
    assert all(record["turns"][0] for record in first.records)
    assert without_ms(vtools(*ask, stdin=questions(3)).stdout) == without_ms(first.stdout)


class Terminal:
    """`vtools chat` in a pseudo terminal."""

    def __init__(self, server: Chat, cwd, *args: str) -> None:
        self.master, slave = pty.openpty()
        env = environment(TERM="xterm", PROMPT_TOOLKIT_NO_CPR="1")

        def own_terminal() -> None:
            import fcntl
            import termios

            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            command("chat", "--base-url", server.url, *args), cwd=cwd, env=env, stdin=slave, stdout=slave, stderr=slave,
            start_new_session=True, preexec_fn=own_terminal,
        )  # fmt: skip
        os.close(slave)
        self.shown = ""
        self.see("Ctrl-D to leave")
        self.see(">")

    def see(self, text: str, seconds: float = 60) -> None:
        """Wait for a text, and forget all up to it."""
        deadline = time.monotonic() + seconds
        while text not in self.shown:
            ready = select.select([self.master], [], [], max(0, deadline - time.monotonic()))[0]
            assert ready, f"{text!r} did not come after {self.shown!r}"
            self.shown += os.read(self.master, 65536).decode(errors="replace")
        self.shown = self.shown.partition(text)[2]

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def leave(self) -> int:
        self.see(">")  # before the prompt is there, Ctrl-D would not be read as a key
        self.type("\x04")
        try:
            while os.read(self.master, 65536):
                pass
        except OSError:
            pass
        return self.process.wait(30)


def test_a_conversation_in_a_terminal(tmp_path):
    def reply(messages, body):
        return [f"[{len(messages)}", " mess", "ages]"]

    def contents() -> list[str]:
        return [message["content"] for message in server.bodies[-1]["messages"]]

    with Chat(reply) as server:
        terminal = Terminal(server, tmp_path, "--system", "be kind")
        terminal.type("hello\r")
        terminal.see("[2 messages]")
        terminal.type("more\r")
        terminal.see("[4 messages]")
        assert contents() == ["be kind", "hello", "[2 messages]", "more"]
        terminal.type("/save talk.jsonl\r")
        wait_until(lambda: (tmp_path / "talk.jsonl").exists())
        terminal.type("/undo\r")
        terminal.type("/regen\r")
        terminal.see("[2 messages]")
        assert contents() == ["be kind", "hello"]
        assert server.bodies[-1]["seed"] == 1 and server.bodies[0]["seed"] == 0
        terminal.type("/load talk.jsonl\r")
        terminal.see("[4 messages]")
        terminal.type("on\r")
        terminal.see("[6 messages]")
        terminal.type("/reset\r")
        terminal.type("new\r")
        terminal.see("[2 messages]")
        terminal.type("/load nothing.jsonl\r")
        terminal.see("No such file")
        terminal.type("/what\r")
        terminal.see("/regen")
        assert terminal.leave() == 0
    (saved,) = map(json.loads, (tmp_path / "talk.jsonl").read_bytes().splitlines())
    assert [message["role"] for message in saved["messages"]] == ["system", "user", "assistant", "user", "assistant"]


def test_every_character_is_shown_when_it_comes(tmp_path):
    shown = threading.Event()

    def pieces():
        yield "你"
        assert shown.wait(60)  # without a space or a newline after it
        yield "好\x1b]52;c;AAAA\x07"

    with Chat(lambda messages, body: pieces()) as server:
        terminal = Terminal(server, tmp_path)
        terminal.type("hi\r")
        terminal.see("你")
        shown.set()
        terminal.see("好\\u001b]52;c;AAAA\\u0007")  # what a model writes cannot steer the terminal
        assert terminal.leave() == 0


def test_ctrl_c_stops_the_answer_and_drops_its_question(tmp_path):
    go_on = threading.Event()

    def reply(messages, body):
        def endless():
            yield "once upon"
            go_on.wait(60)
            raise Break

        return endless() if messages[-1]["content"] == "tell" else ["done"]

    with Chat(reply) as server:
        terminal = Terminal(server, tmp_path)
        terminal.type("tell\r")
        terminal.see("once upon")
        terminal.type("\x03")
        terminal.see("dropped")
        go_on.set()
        terminal.see(">")
        terminal.type("\x03")  # at the prompt it only drops the line
        terminal.type("next\r")
        terminal.see("done")
        assert terminal.leave() == 0
    assert [message["content"] for message in server.bodies[-1]["messages"]] == ["next"]


def test_an_error_in_a_conversation_does_not_end_it(tmp_path):
    def reply(messages, body):
        if messages[-1]["content"] == "bad":
            raise Status(400, {"error": {"message": "not that"}})
        return ["good"]

    with Chat(reply) as server:
        terminal = Terminal(server, tmp_path)
        terminal.type("bad\r")
        terminal.see("not that")
        terminal.type("better\r")
        terminal.see("good")
        assert terminal.leave() == 0
    assert len(server.bodies[-1]["messages"]) == 1
