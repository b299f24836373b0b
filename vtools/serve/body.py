# ruff: noqa: TID253  imported by the command alone, once it is about to serve
"""The body of a request: its type, its size, its compression."""

import asyncio
import zlib

from starlette.requests import Request

from vtools.serve.errors import SHOWN, ApiError

LIMIT = 1 << 20  # bytes, as sent and unpacked
SECONDS = 30.0  # for a body to arrive
PACKED = ("gzip", "x-gzip")


async def read(request: Request) -> bytes:
    """The JSON of a request, unpacked. Raises ApiError(408, 413, 415 or 400)."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a web page may send forms to any server without a preflight request
        raise ApiError(415, "send the header Content-Type: application/json", code="unsupported_media_type")
    coding = request.headers.get("content-encoding", "").strip().lower()
    if coding not in (*PACKED, "identity", ""):
        message = f"Content-Encoding: {coding[:SHOWN]} is not supported: send the body plain, or in gzip"
        raise ApiError(415, message, code="unsupported_encoding", headers={"accept-encoding": "gzip"})
    chunks, size = [], 0
    try:
        async with asyncio.timeout(SECONDS):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= LIMIT:
                    chunks.append(chunk)
                elif size > 16 * LIMIT:  # read up to this size, so that the client gets our answer
                    break
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {SECONDS:g} s", code="timeout") from None
    if size > LIMIT:
        raise _too_large("the body")
    body = b"".join(chunks)
    return unpacked(body) if coding in PACKED else body


def unpacked(body: bytes) -> bytes:
    """The content of a gzip body, of which no more than the limit is unpacked. Raises ApiError(413 or 400)."""
    unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        content = unpacker.decompress(body, LIMIT + 1)
    except zlib.error as error:
        raise _torn(str(error)) from None
    if len(content) > LIMIT:
        raise _too_large("the unpacked body")
    if not unpacker.eof:
        raise _torn("it breaks off")
    if unpacker.unused_data:
        raise _torn("bytes follow its end")
    return content


def _too_large(what: str) -> ApiError:
    return ApiError(413, f"{what} is larger than {LIMIT} bytes", code="body_too_large")


def _torn(reason: str) -> ApiError:
    return ApiError(400, f"the body is not the gzip that its Content-Encoding says: {reason}", code="invalid_gzip")
