"""A program to run in network and mount namespaces of its own: `vtools fetch` of a name that changes its address.

The name is first a public address, whose server answers 500 and closes, then this machine's. Prints, as JSON, the exit
status, what vtools said, and how many requests each server got.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading

from loopback import Reply, Server
from running import run

PUBLIC = "93.184.216.34"


def shell(*command: str) -> None:
    subprocess.run(command, check=True)


def names(answers: dict[str, int]) -> None:
    """A name server: the public address the first time, and 127.0.0.1 from then on; no IPv6 addresses (RFC 1035)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 53))
        while True:
            query, client = server.recvfrom(512)
            question = query[12 : query.index(b"\0", 12) + 5]
            answer = b""
            if question[-4:-2] == b"\0\1":
                address = PUBLIC if answers["given"] == 0 else "127.0.0.1"
                answers["given"] += 1
                answer = b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + socket.inet_aton(address)
            counts = b"\0\1\0%c\0\0\0\0" % bool(answer)
            server.sendto(query[:2] + b"\x81\x80" + counts + question + answer, client)


def main() -> None:
    shell("ip", "link", "set", "lo", "up")
    shell("ip", "address", "add", f"{PUBLIC}/32", "dev", "lo")
    with open("resolv.conf", "w") as file:
        file.write("nameserver 127.0.0.1\n")
    shell("mount", "--bind", "resolv.conf", "/etc/resolv.conf")
    answers = {"given": 0}
    threading.Thread(target=names, args=(answers,), daemon=True).start()
    with Server(lambda request: Reply(b'{"prompt": "Q", "completion": "secret"}'), 8080) as secret:
        busy = Reply(status=500, headers={"Connection": "close"})
        with Server(lambda request: busy, 8080, PUBLIC) as public:
            done = run("fetch", "http://rebound.example:8080/x", "--rate", 1000)
    told = {
        "code": done.returncode,
        "said": done.errors,
        "public": len(public.requests),
        "secret": len(secret.requests),
    }
    print(json.dumps({**told, **answers}))


if __name__ == "__main__":
    sys.exit(main())
