"""The API keys of clients: one in the environment, or a file of them with names, of which only digests are kept."""

import contextlib
import hashlib
import hmac
import json
import os
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vtools.process import Failure, UsageFailure
from vtools.serve.errors import ApiError

KEY, FILE = "VTOOLS_API_KEY", "VTOOLS_KEYS_FILE"
MINUTE = 60.0  # seconds
LINE = '{"name": "ana", "sha256": "64 hexadecimal digits", "per_minute": 60, "models": ["vicuna"]}'
_NAME = re.compile(r"[\w.@-]{1,64}")


@dataclass(slots=True)
class Key:
    """A client's key: its name, and what it may ask. `spent` grows by each request and shrinks with time."""

    name: str | None
    sha256: str
    per_minute: int | None = None
    models: tuple[str, ...] | None = None
    spent: float = 0.0
    at: float = field(default_factory=time.monotonic)

    def take(self) -> None:
        """Count a request. Raises ApiError(429) for one too many in a minute."""
        if self.per_minute is None:
            return
        now, rate = time.monotonic(), self.per_minute / MINUTE
        self.spent, self.at = max(0.0, self.spent - (now - self.at) * rate), now
        if self.spent + 1 > self.per_minute:
            wait = str(max(1, round((self.spent + 1 - self.per_minute) / rate)))
            message = f"{self.name} may send {self.per_minute} requests a minute"
            raise ApiError(429, message, code="rate_limit_exceeded", headers={"retry-after": wait})
        self.spent += 1

    def allows(self, model: str) -> bool:
        """Whether it may ask this model."""
        return self.models is None or model in self.models


NOBODY = Key(None, "")  # where no key is needed


class Keys:
    """The keys that an edge knows, none if clients need none."""

    def __init__(self, environment: Mapping[bytes, bytes]) -> None:
        """Raises UsageFailure for a file that cannot be read."""
        key = environment.get(KEY.encode(), b"").strip()  # without the line end of the file that it came from
        self._file = os.fsdecode(environment.get(FILE.encode(), b"")) or None
        self._single = [Key(None, _digest(form)) for form in _forms(key)] if key else []
        self._listed: list[Key] = []
        self.read()

    def __bool__(self) -> bool:
        return bool(self._single or self._file)

    def read(self) -> None:
        """Read the file again; keys that stay keep their counts. Raises UsageFailure, and keeps what it knew."""
        if self._file is None:
            return
        known = {key.sha256: key for key in self._listed}
        listed = read(self._file)
        for key in listed:
            if before := known.get(key.sha256):
                key.spent, key.at = before.spent, before.at
        self._listed = listed

    def find(self, given: bytes) -> Key | None:
        """The key that a client has sent; all are compared, so that the time tells nothing."""
        digest = _digest(given)
        found = [key for key in (*self._single, *self._listed) if hmac.compare_digest(key.sha256, digest)]
        return found[0] if found else None


def read(file: str) -> list[Key]:
    """The keys in a file. Raises UsageFailure."""
    keys: dict[str, Key] = {}
    try:
        with open(file, encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    key = _read_line(line, f"{file}:{number}")
                    if key.name in keys:
                        raise UsageFailure(f"{file}:{number}: another key is named {key.name}; each has its own name")
                    keys[str(key.name)] = key
    except (OSError, UnicodeDecodeError) as error:
        raise UsageFailure(f"{FILE}: {file}: {getattr(error, 'strerror', None) or error}") from None
    return list(keys.values())


def _read_line(line: str, where: str) -> Key:
    with contextlib.suppress(ValueError):
        found = json.loads(line)
        if isinstance(found, dict) and found.keys() <= {"name", "sha256", "per_minute", "models"} and _is_key(found):
            models = found.get("models")
            return Key(
                found["name"], found["sha256"], found.get("per_minute"), None if models is None else tuple(models)
            )
    raise UsageFailure(f"{where}: not a key; write one JSON object a line, such as {LINE}")


def _is_key(found: dict[str, Any]) -> bool:
    rate, models = found.get("per_minute"), found.get("models")
    return (
        isinstance(found.get("name"), str)
        and _NAME.fullmatch(found["name"]) is not None
        and isinstance(found.get("sha256"), str)
        and re.fullmatch(r"[0-9a-f]{64}", found["sha256"]) is not None
        and (rate is None or (type(rate) is int and rate > 0))
        and (models is None or (isinstance(models, list) and all(isinstance(one, str) for one in models)))
    )


def add(name: str, environment: Mapping[str, str]) -> str:
    """Make a key, append its name and digest to the file of keys, and return it. Raises UsageFailure, Failure."""
    file = environment.get(FILE)
    if not file:
        raise UsageFailure(f"--new-key: set {FILE} to the file of keys in the environment first")
    if not _NAME.fullmatch(name):
        raise UsageFailure(f"--new-key {name}: a name has letters, digits and . _ @ - only")
    if os.path.exists(file) and any(key.name == name for key in read(file)):
        raise UsageFailure(f"--new-key {name}: {file} has a key of this name; remove its line first, or take another")
    key = f"vt-{secrets.token_urlsafe(32)}"
    line = json.dumps({"name": name, "sha256": _digest(key.encode())}) + "\n"
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with open(descriptor, "ab") as stream:
            stream.write(line.encode())
    except OSError as error:
        raise Failure(f"{file}: {error.strerror}") from None
    return key


def _digest(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()


def _forms(key: bytes) -> list[bytes]:
    """A key as clients may send it: browsers and Python's http.client send other bytes of what is not ASCII."""
    with contextlib.suppress(UnicodeError):
        return list(dict.fromkeys([key, key.decode().encode("latin-1")]))
    return [key]
