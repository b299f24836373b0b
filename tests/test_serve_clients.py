"""Clients that people use, unchanged, whole and streamed: openai for Node, llm, LangChain, curl; and schemathesis."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from running import execute
from serving import Server, body

pytestmark = pytest.mark.slow
QUESTION = "the cat"


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the Python clients, to put before all others in PYTHONPATH."""
    folder = tmp_path_factory.mktemp("clients")
    wanted = ["langchain-openai==1.7.*", "llm==0.36.*", "schemathesis==4.32.*"]
    done = execute([sys.executable, "-m", "pip", "install", "-q", "--target", str(folder), *wanted])
    if done.returncode:
        pytest.skip(f"the clients cannot be installed: {done.errors.strip().splitlines()[-1]}")
    return folder


@pytest.fixture
def answer(server: Server) -> str:
    """What the server says to the question."""
    return server.post(body()).json()["choices"][0]["message"]["content"]


def run(command: list[str], **environment: str) -> str:
    done = execute(command, env=environment)
    assert done.returncode == 0, done.errors
    return done.stdout.decode()


def test_curl_and_its_stream(server, answer):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = ["curl", "-sSN", "--json", json.dumps(body()), f"{server.url}/chat/completions"]
    assert json.loads(run(command))["choices"][0]["message"]["content"] == answer
    command[3] = json.dumps(body(stream=True))
    *events, done = [line[6:] for line in run(command).splitlines() if line]
    assert done == "[DONE]"
    assert "".join(json.loads(event)["choices"][0]["delta"].get("content", "") for event in events) == answer


NODE = """
import OpenAI from "openai";
const client = new OpenAI({baseURL: process.argv[2], apiKey: "none", maxRetries: 0});
const asked = {model: "short", messages: [{role: "user", content: process.argv[3]}], max_tokens: 8, temperature: 0};
const whole = await client.chat.completions.create(asked);
let text = "";
for await (const chunk of await client.chat.completions.create({...asked, stream: true}))
    text += chunk.choices[0]?.delta?.content ?? "";
const models = [];
for await (const model of client.models.list()) models.push(model.id);
let refusal = "";
try { await client.chat.completions.create({...asked, model: "x"}); } catch (error) { refusal = error.constructor.name; }
console.log(JSON.stringify([whole.choices[0].message.content, text, models, refusal]));
"""


def test_the_openai_library_for_node(server, answer, tmp_path):
    if shutil.which("npm") is None:
        pytest.skip("Node is not installed")
    done = subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "openai@6"], cwd=tmp_path, capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"openai for Node cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    (tmp_path / "ask.mjs").write_text(NODE)
    found = run(["node", str(tmp_path / "ask.mjs"), server.url, QUESTION])
    assert json.loads(found) == [answer, answer, ["short"], "NotFoundError"]


def test_llm(server, answer, packages, tmp_path):
    told = {"PYTHONPATH": str(packages), "LLM_USER_PATH": str(tmp_path), "LLM_LOAD_PLUGINS": ""}
    about = {"model_id": "ours", "model_name": "short", "api_base": server.url, "api_key_name": "none"}
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([about]))
    command = [sys.executable, "-m", "llm", "-m", "ours", "--key", "none"]
    command += ["-o", "temperature", "0", "-o", "max_tokens", "8", QUESTION]
    assert run(command, **told).strip() == answer.strip()
    assert run([*command, "--no-stream"], **told).strip() == answer.strip()


LANGCHAIN = """
import json, sys
from langchain_openai import ChatOpenAI, OpenAI
asked = {"model": "short", "base_url": sys.argv[1], "api_key": "none", "max_tokens": 8, "temperature": 0}
client = ChatOpenAI(**asked)
whole = client.invoke([("human", sys.argv[2])])
streamed = "".join(chunk.content for chunk in client.stream(sys.argv[2]))
batch = [one.content for one in client.batch([sys.argv[2]] * 3)]
print(json.dumps([whole.content, streamed, batch, whole.usage_metadata["total_tokens"] > 8]))
"""


def test_langchain(server, answer, packages):
    found = run([sys.executable, "-c", LANGCHAIN, server.url, QUESTION], PYTHONPATH=str(packages))
    assert json.loads(found) == [answer, answer, [answer] * 3, True]


def test_no_request_that_schemathesis_makes_of_the_description_is_a_500(server, packages):
    address = server.url.removesuffix("/v1")
    checks = "not_a_server_error,content_type_conformance,response_schema_conformance"
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{address}/openapi.json", "--url", address, "--checks", checks,
        "--max-examples", "200", "--seed", "1", "--no-color",
    ]  # fmt: skip
    done = execute(command, env={"PYTHONPATH": str(packages)}, cwd=os.environ["VTOOLS_CACHE"], timeout=900)
    assert done.returncode == 0, done.stdout.decode()
    assert server.post(body()).status_code == 200
