"""The reader: every value of an array comes out as its own bytes, however it is written, cut up or torn."""

from __future__ import annotations

import json

import pytest
from counting import assert_linear
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vtools.records import arrays as cutter
from vtools.records import streams

thorough = settings(max_examples=500, suppress_health_check=[HealthCheck.too_slow])
# What a cutter could take for structure, inside strings.
PIECES = st.sampled_from(['"', "\\", '\\"', "}, {", "},\n  {", "],[", '{"id": "', "[", "]", "{", "}", ",", ":", "\n", "é", "\ud800", "x", " "])  # fmt: skip
STRINGS = st.lists(PIECES, max_size=8).map("".join) | st.text(max_size=5)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | STRINGS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(STRINGS, inner, max_size=4), max_leaves=12
)
SPACE = st.sampled_from(["", "", " ", "\n", "\r\n  ", "\t"])
STYLES = st.fixed_dictionaries(
    {
        "ensure_ascii": st.booleans(),
        "indent": st.sampled_from([None, None, 0, 2, "\t"]),
        "separators": st.sampled_from([None, (",", ":"), (" , ", " : ")]),
    }
)


@st.composite
def arrays(draw) -> tuple[bytes, list[tuple[int, int]]]:
    """The text of an array, and where each of its elements begins and ends."""
    style, space = draw(STYLES), [draw(SPACE) for _ in range(3)]
    text, places = b"[", []
    for number, value in enumerate(draw(st.lists(VALUES, max_size=6))):
        element = json.dumps(value, **style).encode("utf-8", "replace")
        text += (space[0] + "," + space[1] if number else space[2]).encode()
        places.append((len(text), len(text) + len(element)))
        text += element
    return text + space[0].encode() + b"]", places


def cut(data: bytes, sizes: list[int]) -> list[streams.Value]:
    """The values of data that comes in chunks of these sizes, over and over."""
    chunks, position, turn = [], 0, 0
    while position < len(data):
        size = sizes[turn % len(sizes)]
        chunks.append(data[position : position + size])
        position, turn = position + size, turn + 1
    return list(streams.split(iter(chunks), "file"))


SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=3) | st.just([1 << 16])


@thorough
@given(st.lists(arrays(), min_size=1, max_size=3), st.lists(st.sampled_from(["", "\n", "\ufeff", "\n\ufeff "])), SIZES)
def test_arrays_give_exactly_their_elements_in_any_writing_and_any_chunks(given_arrays, between, sizes):
    data, expected = b"", []
    for number, (text, places) in enumerate(given_arrays):
        data += "".join(between[number : number + 1]).encode() + text
        expected += [text[start:end] for start, end in places]
    assert [(value.raw, value.torn) for value in cut(data, sizes)] == [(raw, None) for raw in expected]
    assert [value.number for value in cut(data, sizes)] == list(range(1, len(expected) + 1))


@thorough
@given(arrays(), st.integers(0, 10_000), SIZES)
@example((b"[12]", [(1, 3)]), 2, [1])
@example((b'["a"]', [(1, 4)]), 3, [1])
@example((b'[{"a":"\\\\\\""},1]', [(1, 12), (13, 14)]), 11, [1])
def test_a_torn_array_gives_exactly_its_whole_elements_and_then_says_where_it_tore(array, place, sizes):
    data, places = array
    place %= len(data)
    *whole, last = cut(data[:place], sizes) or [None]
    if last is None:
        assert place == 0
        return
    # An object, a list or a text is whole with its last byte; a number may go on until its comma has come.
    known = [(a, b) for a, b in places if b <= place and (data[b - 1] in b'}]"' or b"," in data[b:place])]
    assert [value.raw for value in whole] == [data[a:b] for a, b in known]
    assert last.torn == f"the array is not closed: it breaks off at byte {place}"
    assert last.raw == data[known[-1][1] if known else 1 : place].strip().removeprefix(b",").strip()


@thorough
@given(arrays(), st.lists(st.integers().map(str) | STRINGS.map(json.dumps), min_size=1), SIZES)
def test_lines_after_an_array_are_not_lost(array, lines, sizes):
    data, places = array
    values = cut(data + b"\n" + "\n".join(lines).encode() + b"\n", sizes)
    assert [value.raw for value in values] == [data[a:b] for a, b in places] + [line.encode() for line in lines]


@thorough
@given(arrays(), st.integers(0, 6), st.sampled_from(["{x}", "{'a': \"], [\"}", "[1 2]", "nul", '{"a" "b"}', '"\\x"']), SIZES)  # fmt: skip
def test_one_broken_element_does_not_lose_the_others(array, place, broken, sizes):
    data, places = array
    elements = [data[a:b] for a, b in places]
    elements.insert(place, broken.encode())
    assert [value.raw for value in cut(b"[" + b",\n".join(elements) + b"]", sizes)] == elements


@thorough
@given(st.binary(max_size=60) | st.lists(st.sampled_from(list('[]{},"\\ \n1')), max_size=40).map("".join), SIZES)
def test_chunks_never_matter_whatever_the_bytes(junk, sizes):
    data = b"[" + (junk if isinstance(junk, bytes) else junk.encode())
    assert cut(data, sizes) == cut(data, [len(data)])


LONG = {
    "a string": lambda n: b'[{"a":"' + b"x" * n + b'"}]',
    "an open string": lambda n: b'[{"a":"' + b"x" * n,
    "escaped quotes": lambda n: b'["' + b'\\"' * (n // 2) + b'"]',
    "escaped backslashes": lambda n: b'[["' + b'\\\\\\"' * (n // 4) + b'"]]',
    "an element of short strings": lambda n: b"[[" + b'"abcdefgh",' * (n // 11) + b"1]]",
    "an element of objects": lambda n: b"[[[[" + b'{"a":[{}]},' * (n // 11) + b"1]]]]",
    "open brackets": lambda n: b"[" * n,
    "deep": lambda n: b"[" * (n // 2) + b"]" * (n // 2),
    "open objects": lambda n: b'[{"a":' * (n // 6),
    "commas": lambda n: b"[" + b"," * n,
    "an object over many lines": lambda n: b'{\n"a": [\n' + b"1,\n" * (n // 3) + b"1]\n}",
    "an open object over many lines": lambda n: b'{\n"a": [\n' + b"1,\n" * (n // 3),
    "objects over several lines": lambda n: b'{\n"a": 1\n}\n' * (n // 11),
    "objects on one line": lambda n: b'{"a":1}' * (n // 7),
    "a list of turns": lambda n: b'[{"role":"user","content":"' + b"x" * n + b'"}]\n',
    "lists of turns": lambda n: b'[{"role":"user","content":"x"}]\n' * (n // 32),
    "open quotes": lambda n: b'["' + b'","' * (n // 3),
}


class Counted:
    """A pattern of the cutter that counts the bytes it goes over, and those of every buffer that it has not seen."""

    seen = None
    bytes = 0

    def __init__(self, pattern):
        self.pattern = pattern

    def match(self, buffer, position):
        if buffer is not Counted.seen:  # copied together from what was left and what has come
            Counted.seen, Counted.bytes = buffer, Counted.bytes + len(buffer)
        found = self.pattern.match(buffer, position)
        Counted.bytes += (found.end() if found else len(buffer)) - position
        return found


def read_through(data: bytes, chunk: int = 512) -> None:
    for _ in streams.split((data[place : place + chunk] for place in range(0, len(data), chunk)), "file"):
        pass


@pytest.mark.parametrize("name", LONG)
def test_the_work_grows_with_the_length_and_not_with_its_square(name, monkeypatch):
    """In small chunks: to go over all that came before for each of them would be a thousand times as much."""
    made = LONG[name]
    assert_linear(lambda size: read_through(made(size)), 50_000)
    for pattern in ("_STRING", "_TOP", "_DEEP"):
        monkeypatch.setattr(cutter, pattern, Counted(getattr(cutter, pattern)))
    data = made(1_000_000)
    Counted.bytes = 0
    read_through(data)
    assert Counted.bytes < 8 * len(data)
