"""A hub on loopback: every folder OWNER/NAME under a root as a model, datasets/OWNER/NAME as a data set."""

from __future__ import annotations

import hashlib
from pathlib import Path

from loopback import Reply, Request, Server

COMMIT = "0" * 40


class Hub(Server):
    """Its URL is for HF_ENDPOINT; `fetched` are the files that were fetched from it.

    Data sets named in `gated` need a token, and one of whom its terms were accepted; the first download of a file in
    `breaking` breaks off. While it is `busy`, it answers 429 about data sets.
    """

    accepted = "hf_x"

    def __init__(self, root: Path) -> None:
        self.root = root
        self.fetched: list[str] = []
        self.gated: set[str] = set()
        self.breaking: set[str] = set()
        self.busy = False
        super().__init__(self._reply)

    def _reply(self, request: Request) -> Reply:
        path = request.path.partition("?")[0].strip("/")
        if path.startswith("api/models/"):
            return self._about(*path.split("/")[2:4], "/tree/" in path)
        if path.startswith("api/datasets/"):
            return self._about_dataset(path.removeprefix("api/"), request)
        if path.startswith("datasets/"):
            return self._linked(path, request)
        if path.startswith("store/"):
            return self._stored(path, request)
        owner, name, _, _, file = path.split("/", 4)
        place = self.root / owner / name / file
        if request.method == "GET":
            self.fetched.append(f"{owner}/{name}/{file}")
        body = place.read_bytes() if place.is_file() else b""
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(body).hexdigest()}"'}
        return Reply(body, 200 if place.is_file() else 404, headers)

    def _about_dataset(self, path: str, request: Request) -> Reply:
        _, owner, name, *rest = path.split("/")
        folder = self.root / "datasets" / owner / name
        if self.busy:
            return Reply(status=429, headers={"Retry-After": "1"})
        if not folder.is_dir():
            return Reply(status=401, headers={"X-Error-Code": "RepoNotFound"})
        if rest and rest[1] not in ("main", COMMIT):
            return Reply(status=404, headers={"X-Error-Code": "RevisionNotFound"})
        files = sorted(str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file())
        siblings = [{"rfilename": file} for file in files]
        about = {"id": f"{owner}/{name}", "sha": COMMIT, "siblings": siblings, "cardData": {"license": "odc-by"}}
        return Reply.json(about)

    def _linked(self, path: str, request: Request) -> Reply:
        """A large file is elsewhere: the answer tells where, and the digest of its content."""
        _, owner, name, _, _, file = path.split("/", 5)
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if f"{owner}/{name}" in self.gated and token != self.accepted:
            return Reply(status=403 if token else 401, headers={"X-Error-Code": "GatedRepo"})
        place = self.root / "datasets" / owner / name / file
        body = place.read_bytes()
        about = {"X-Repo-Commit": COMMIT, "X-Linked-Etag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Linked-Size": str(len(body))}  # fmt: skip
        return Reply(status=302, headers={**about, "Location": f"{self.url}/store/{owner}/{name}/{file}"})

    def _stored(self, path: str, request: Request) -> Reply:
        body = (self.root / "datasets" / path.removeprefix("store/")).read_bytes()
        if request.method == "GET":
            self.fetched.append(path.removeprefix("store/"))
        start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        headers = {
            "Content-Length": str(len(body) - start),
            "ETag": f'"{hashlib.sha256(body).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
        }
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        piece = body[start:]
        if request.method == "GET" and path in self.breaking:
            self.breaking.discard(path)
            piece = piece[: len(piece) // 2]
        return Reply(piece, 206 if start else 200, headers)

    def _about(self, owner: str, name: str, tree: bool) -> Reply:
        folder = self.root / owner / name
        files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
        if tree:
            entries = [{"type": "file", "path": name, "size": path.stat().st_size, "oid": COMMIT} for name, path in files.items()]  # fmt: skip
            return Reply.json(entries)
        about = {"id": f"{owner}/{name}", "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
        return Reply.json(about, 200 if files else 404)
