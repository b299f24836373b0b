"""The conversation in a terminal."""

import dataclasses
import signal
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from vtools.chat.batch import opening
from vtools.inference.client import Client, Sampling
from vtools.inference.connect import Target, connect
from vtools.process import Failure, Interrupted, UsageFailure, say, shown
from vtools.records import conversation, jsonl

HELP = """\
/reset          start over
/undo           remove the last question and its answer
/regen          ask the last question again
/save FILE      append this conversation to FILE, as one JSONL line that every vtools tool reads
/load FILE      continue the last conversation in FILE
/exit, Ctrl-D   leave
Ctrl-C          stop the answer and drop its question"""


def converse(target: Target, system: str | None, sampling: Sampling, out: str | None) -> None:
    """Read questions and stream answers until /exit or Ctrl-D."""
    if out:
        raise UsageFailure("-o needs questions: name a FILE or pipe them in; /save keeps a conversation")
    from prompt_toolkit import PromptSession
    from prompt_toolkit.output import create_output

    client, name = connect(target)
    talk = Talk(client, name, system, sampling)
    print(f"{shown(name)}: /help for help, Ctrl-D to leave", file=sys.stderr)
    session: PromptSession[str] = PromptSession(output=create_output(always_prefer_tty=True))
    with closing(client):
        while True:
            try:
                line = session.prompt("> ").strip()
            except KeyboardInterrupt:  # drop the line, as a shell does
                continue
            except EOFError:
                return
            if line in ("/exit", "/quit"):
                return
            try:
                if line.startswith("/"):
                    talk.command(line)
                elif line:
                    talk.again = 0
                    talk.ask(line)
            except jsonl.Reject as reject:  # the template cannot render this conversation
                say("chat", f"{reject.detail}")
            except (Failure, OSError) as error:
                say("chat", f"{error}")


class Talk:
    """One conversation with one model."""

    def __init__(self, client: Client, name: str, system: str | None, sampling: Sampling) -> None:
        self.client, self.name, self.system, self.sampling = client, name, system, sampling
        self.messages = opening([], system)
        self.again = 0  # how often the last question has been asked again

    def ask(self, question: str, before: list[dict[str, Any]] | None = None) -> None:
        """Stream the answer to a question; if it is stopped or fails, the conversation stays as it was."""
        asked = [*(self.messages if before is None else before), {"role": "user", "content": question}]
        sampling = self.sampling
        if sampling.seed is not None:  # the same seed would give the same answer
            sampling = dataclasses.replace(sampling, seed=sampling.seed + self.again)
        pieces: list[str] = []
        try:
            with closing(self.client.stream(asked, sampling)) as stream:
                for piece in stream:
                    pieces.append(piece)
                    print(shown(piece), end="", flush=True)
        except Interrupted as interrupt:
            if interrupt.signum != signal.SIGINT:
                raise
            print("\n(stopped; the question is dropped)", file=sys.stderr)
            return
        finally:
            print(flush=True)
        self.messages = [*asked, {"role": "assistant", "content": "".join(pieces)}]

    def command(self, line: str) -> None:
        """Run a command that begins with a slash. Raises Failure."""
        word, _, file = line.partition(" ")
        file = file.strip()
        if word == "/reset":
            self.messages, self.again = opening([], self.system), 0
        elif word in ("/undo", "/regen"):
            asked = [index for index, message in enumerate(self.messages) if message["role"] == "user"]
            if not asked:
                raise Failure("no question to ask again yet")
            last, question = asked[-1], self.messages[asked[-1]]["content"]
            if word == "/undo":
                self.messages = self.messages[:last]
            else:
                self.again += 1
                self.ask(question, self.messages[:last])
        elif word == "/save" and file:
            self._save(Path(file))
        elif word == "/load" and file:
            self._load(file)
        else:
            print(HELP, file=sys.stderr)

    def _save(self, path: Path) -> None:
        if not any(message["role"] == "assistant" for message in self.messages):
            raise Failure("nothing to save yet")
        record = {"id": conversation.content_id(self.messages), "messages": self.messages, "model": self.name}
        with open(path, "ab") as stream:
            stream.write(jsonl.dumps(record))

    def _load(self, file: str) -> None:
        record: dict[str, Any] | None = None
        for record in jsonl.records([file]):  # noqa: B007  the last one counts
            pass
        if record is None:
            raise Failure(f"{file}: no conversation in it")
        try:
            self.messages = conversation.read(record)["messages"]
        except jsonl.Reject as reject:
            raise Failure(f"{file}: {reject.detail}") from None
        for message in self.messages:
            print(f"{'> ' if message['role'] == 'user' else ''}{shown(message['content'])}")
