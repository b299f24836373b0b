"""A model hub on loopback: every folder OWNER/NAME under a root as a repository, by the hub's own protocol."""

from __future__ import annotations

import hashlib
from pathlib import Path

from loopback import Reply, Request, Server

COMMIT = "0" * 40


class Hub(Server):
    """Its URL is for HF_ENDPOINT; `fetched` are the files that were fetched from it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.fetched: list[str] = []
        super().__init__(self._reply)

    def _reply(self, request: Request) -> Reply:
        path = request.path.partition("?")[0].strip("/")
        if path.startswith("api/models/"):
            return self._about(*path.split("/")[2:4], "/tree/" in path)
        owner, name, _, _, file = path.split("/", 4)
        place = self.root / owner / name / file
        if request.method == "GET":
            self.fetched.append(f"{owner}/{name}/{file}")
        body = place.read_bytes() if place.is_file() else b""
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(body).hexdigest()}"'}
        return Reply(body, 200 if place.is_file() else 404, headers)

    def _about(self, owner: str, name: str, tree: bool) -> Reply:
        folder = self.root / owner / name
        files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
        if tree:
            entries = [{"type": "file", "path": name, "size": path.stat().st_size, "oid": COMMIT} for name, path in files.items()]  # fmt: skip
            return Reply.json(entries)
        about = {"id": f"{owner}/{name}", "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
        return Reply.json(about, 200 if files else 404)
