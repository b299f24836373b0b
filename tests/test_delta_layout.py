"""How a delta's chunks are laid out: by the words of difference.py's docstring, and as older versions wrote them."""

import contextlib
import json
import struct

import pytest

np = pytest.importorskip("numpy")
blake3 = pytest.importorskip("blake3").blake3

import zstandard  # noqa: E402
from checkpoints import contents, pair, write  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from running import bad, good  # noqa: E402

from vtools.delta import difference, manifest  # noqa: E402

AS_IS, PACKED, FEW = 0, 1, 2


def bytes_of(raw):
    return np.frombuffer(bytearray(raw), "u1")


def zigzag(target, base, bits):
    """The difference of two words as an older version coded it, in Python's integers."""
    change = (target - base) % (1 << bits)
    change -= (change >> (bits - 1)) << bits
    return 2 * change if change >= 0 else -2 * change - 1


def digits(change, width, apart):
    """A difference in bytes that count from -128 to 127, the highest from 0 to 255; `apart` low bits come before them."""
    low, rest = change % (1 << apart), change >> apart
    found = []
    for _ in range(width - 1):
        digit = (rest + 128) % 256 - 128
        found.append(digit % 256)
        rest = (rest - digit) >> 8
    return low, [*found, rest % (1 << (8 - apart))]


def undone(low, found, apart):
    """The difference of these digits."""
    *others, highest = found
    signed = [(digit + 128) % 256 - 128 for digit in others]
    return (sum(digit << 8 * place for place, digit in enumerate([*signed, highest])) << apart) + low


def by_the_book(chunk, base, width):
    """What a chunk stands for, read in plain Python as its description says."""
    count = len(base) // width
    apart, place = chunk[0], 1 + 5 * width
    planes = []
    for number in range(width):
        kind, length = struct.unpack_from("<BI", chunk, 1 + 5 * number)
        stored, place = chunk[place : place + length], place + length
        if kind == FEW:
            plane, at = bytearray(count), -1
            (listed,) = struct.unpack_from("<I", stored)
            raw = zstandard.decompress(stored[4:])
            assert len(raw) == 2 * listed
            for distance, value in zip(raw[:listed], raw[listed:], strict=True):
                at += distance + 1
                plane[at] = value
        else:
            plane = stored if kind == AS_IS else zstandard.decompress(stored)
        assert len(plane) == count
        planes.append(plane)
    low = chunk[place:]
    half = (count + 1) // 2
    assert len(low) == (half if apart else 0)
    words = []
    for number in range(count):
        bits = 0
        if apart:
            bits = low[number] & 15 if number < half else low[number - half] >> 4
        change = undone(bits, [plane[number] for plane in planes], apart)
        beneath = int.from_bytes(base[number * width : (number + 1) * width], "little")
        words.append(((beneath + change) % (1 << 8 * width)).to_bytes(width, "little"))
    return b"".join(words)


@st.composite
def changes(draw):
    """Base, target and the bytes of a word: any bits, or a fine-tune with changes of some size in some of the words."""
    width = draw(st.sampled_from([1, 2, 4, 8]))
    count = draw(st.one_of(st.integers(1, 40), st.integers(250, 1500)))
    chance = np.random.default_rng(draw(st.integers(0, 2**32)))
    base = chance.integers(0, 256, count * width, "u1")
    if draw(st.booleans()):
        return base, chance.integers(0, 256, count * width, "u1"), width
    largest = 1 << draw(st.integers(0, 8 * width - 2))
    change = chance.integers(-largest, largest, count, "i8", endpoint=True)
    change[chance.random(count) >= draw(st.sampled_from([0, 0.01, 0.12, 1]))] = 0
    target = base.view(f"<u{width}") + change.astype(f"<i{width}").view(f"<u{width}")
    return base, target.view("u1"), width


@settings(max_examples=300)
@given(changes(), st.sampled_from(["planes", "raw"]))
def test_a_chunk_stands_for_what_its_description_says(change, codec):
    base, target, width = change
    chunk = difference.encode(target, base, width, codec)
    assert difference.decode(bytes_of(chunk), base, width, codec).tobytes() == target.tobytes()
    if codec == "planes":
        assert by_the_book(chunk, base.tobytes(), width) == target.tobytes()
        assert len(chunk) <= len(base) + 64 * width  # random bits cost no more than themselves
    else:
        assert chunk == (target.view(f"<u{width}") - base.view(f"<u{width}")).tobytes()


def test_the_bytes_of_small_chunks_are_these():
    """Three words of 16 bits that change by 1, -1 and 300, which is 256 + 44, and one byte that changes by -1."""
    base, target = np.array([7, 7, 65500], "<u2"), np.array([8, 6, 264], "<u2")
    wanted = bytes.fromhex("00  00 03000000  00 03000000  01ff2c  000001")
    assert difference.encode(target.view("u1"), base.view("u1"), 2, "planes") == wanted
    wanted = bytes.fromhex("00  00 01000000  ff")
    assert difference.encode(bytes_of(b"\4"), bytes_of(b"\5"), 1, "planes") == wanted
    assert digits(300, 2, 0) == (0, [44, 1]) and digits(200, 2, 0) == (0, [200, 1])  # 256 - 56
    assert digits(-1, 4, 0) == (0, [255, 0, 0, 0]) and digits(-1, 2, 4) == (15, [255, 0])


def test_a_chunk_written_by_hand_is_read():
    """513 words of 16 bits, in each way that a plane can be stored, and with four bits set apart."""
    base = np.arange(513, dtype="<u2") * 99
    changes = [number % 7 - 3 for number in range(513)]
    changes[3], changes[500] = 0x1203, -0xFC
    target = np.array([(b + c) % (1 << 16) for b, c in zip(base.tolist(), changes, strict=True)], "<u2")
    low, high = (bytes(digits(change, 2, 0)[1][place] for change in changes) for place in (0, 1))
    assert (high[3], high[500], 513 - high.count(0)) == (0x12, 0xFF, 2)
    # Words 3, 255, 500 and 511: the two that are not zero, and every 256th.
    few = struct.pack("<I", 4) + zstandard.compress(bytes([3, 251, 244, 10]) + bytes([0x12, 0, 0xFF, 0]))
    for stored in ((AS_IS, high), (PACKED, zstandard.compress(high)), (FEW, few)):
        planes = (AS_IS, low), stored
        heads = [struct.pack("<BI", kind, len(part)) for kind, part in planes]
        chunk = b"\0" + b"".join(heads) + low + stored[1]
        assert difference.decode(bytes_of(chunk), base.view("u1"), 2, "planes").tobytes() == target.tobytes()
    # With four bits set apart: 257 words in the low halves of the last bytes, 256 in the high ones.
    bits = [change % 16 for change in changes]
    pairs = bytes(bits[n] | (bits[n + 257] << 4 if n < 256 else 0) for n in range(257))
    middle, top = (bytes(digits(change, 2, 4)[1][place] for change in changes) for place in (0, 1))
    chunk = b"\4" + struct.pack("<BIBI", AS_IS, 513, AS_IS, 513) + middle + top + pairs
    assert difference.decode(bytes_of(chunk), base.view("u1"), 2, "planes").tobytes() == target.tobytes()
    assert by_the_book(chunk, base.tobytes(), 2) == target.tobytes()


def test_a_plane_is_stored_in_the_way_that_suits_it():
    """Random bits as they are, a few bytes among zeros as these, others packed; random low bits are set apart."""
    chance = np.random.default_rng(0)
    base = chance.integers(0, 256, 1 << 17, "u1")

    def ways(width, largest, draw=chance.integers):
        change = draw(-largest, largest, len(base) // width).astype(f"<i{width}")
        target = (base.view(f"<u{width}") + change.view(f"<u{width}")).view("u1")
        chunk = difference.encode(target, base, width, "planes")
        return chunk[0], [chunk[1 + 5 * number] for number in range(width)], len(chunk) / len(base)

    assert ways(2, 1 << 15)[:2] == (0, [AS_IS, AS_IS])
    assert ways(2, 1 << 7)[:2] == (0, [AS_IS, FEW])
    assert ways(2, 1 << 5)[:2] == (0, [PACKED, FEW])
    apart, kinds, size = ways(2, 100, lambda _, deviation, count: np.rint(chance.normal(0, deviation, count)))
    assert (apart, kinds) == (4, [PACKED, FEW]) and size < 0.56  # their entropy is 0.543
    assert ways(4, 1 << 15)[:2] == (0, [AS_IS, AS_IS, FEW, FEW])
    assert ways(1, 1 << 4)[:2] == (0, [PACKED])
    assert ways(8, 1)[2] < 0.05


@settings(max_examples=300)
@given(changes(), st.data())
def test_a_damaged_chunk_is_said_to_be_one_or_gives_other_words(change, data):
    base, target, width = change
    chunk = bytearray(difference.encode(target, base, width, "planes"))
    if data.draw(st.booleans()):
        del chunk[data.draw(st.integers(0, len(chunk) - 1)) :]
    else:
        chunk[data.draw(st.integers(0, min(len(chunk) - 1, 60)))] ^= 1 << data.draw(st.integers(0, 7))
    with contextlib.suppress(difference.Damaged):
        assert len(difference.decode(bytes_of(chunk), base, width, "planes")) == len(base)


BOMB = zstandard.compress(bytes(1 << 26))


@pytest.mark.parametrize(
    "planes",
    [
        [(AS_IS, bytes(99)), (AS_IS, bytes(100))],
        [(PACKED, zstandard.compress(bytes(101))), (AS_IS, bytes(100))],
        [(PACKED, BOMB), (AS_IS, bytes(100))],
        [(AS_IS, bytes(100)), (FEW, struct.pack("<I", 1 << 25) + BOMB)],
        [(AS_IS, bytes(100)), (FEW, struct.pack("<I", 12) + BOMB)],
        [(AS_IS, bytes(100)), (FEW, struct.pack("<I", 13) + zstandard.compress(bytes(26)))],
        [(AS_IS, bytes(100)), (FEW, struct.pack("<I", 2) + zstandard.compress(bytes([60, 40, 1, 1])))],
        [(AS_IS, bytes(100)), (FEW, b"\0\0")],
        [(AS_IS, bytes(100)), (3, bytes(100))],
    ],
)
def test_planes_that_do_not_fit_the_words_are_refused(planes):
    heads = [struct.pack("<BI", kind, len(stored)) for kind, stored in planes]
    chunk = b"\0" + b"".join((*heads, *(stored for _, stored in planes)))
    with pytest.raises(difference.Damaged):
        difference.decode(bytes_of(chunk), np.zeros(200, "u1"), 2, "planes")


def old_frame(target, base, width):
    """A chunk as make-delta wrote it before it packed planes one by one."""
    bits = 8 * width
    words = zip(target.view(f"<u{width}").tolist(), base.view(f"<u{width}").tolist(), strict=True)
    codes = [zigzag(ours, theirs, bits) for ours, theirs in words]
    return zstandard.compress(b"".join(bytes(code >> 8 * plane & 255 for code in codes) for plane in range(width)), 1)


def old_delta(base, target, delta, chunk):
    """A delta folder of version 1, codec zstd, of models in one file, written without vtools."""

    def read(folder):
        raw = (folder / "model.safetensors").read_bytes()
        start = 8 + struct.unpack("<Q", raw[:8])[0]
        entries = {name: entry for name, entry in json.loads(raw[8:start]).items() if name != "__metadata__"}
        return raw, start, sorted(entries.items(), key=lambda item: item[1]["data_offsets"])

    (theirs, theirs_at, old), (ours, ours_at, new) = read(base), read(target)
    tensors, held = [], {}
    for (name, entry), (_, known) in zip(new, old, strict=True):
        width = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8, "I8": 1}[entry["dtype"]]
        begin, end = entry["data_offsets"]
        beneath = theirs[slice(*(theirs_at + place for place in known["data_offsets"]))]
        result = ours[ours_at + begin : ours_at + end]
        frames = [
            old_frame(bytes_of(result[at : at + chunk]), bytes_of(beneath[at : at + chunk]), width)
            for at in range(0, len(result), chunk)
        ]
        held[name] = "U8", bytes_of(b"".join(frames))
        about = {"name": name, "dtype": known["dtype"], "shape": known["shape"], "blake3": blake3(beneath).hexdigest()}
        tensors.append({
            "name": name, "dtype": entry["dtype"], "shape": entry["shape"], "start": ours_at + begin,
            "bytes": end - begin, "blake3": blake3(result).hexdigest(), "base": about, "chunks": list(map(len, frames)),
        })  # fmt: skip
    gaps = ours[:ours_at]
    held["__gaps__"] = "U8", bytes_of(zstandard.compress(gaps, 1))
    write(delta / "delta-00001-of-00001.safetensors", held)
    file = {
        "path": "model.safetensors", "bytes": len(ours), "sha256": "", "delta": "delta-00001-of-00001.safetensors",
        "gaps_blake3": blake3(gaps).hexdigest(), "tensors": tensors,
    }  # fmt: skip
    value = {
        "format": "vtools-delta", "version": 1, "method": "bits", "made_by": "vtools 0.1.0", "base": "base",
        "base_files": {}, "codec": "zstd", "chunk_bytes": chunk, "files": [file],
    }  # fmt: skip
    compact = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    (delta / "delta.json").write_text(json.dumps(value | {"blake3": blake3(compact).hexdigest()}, indent=2))


def test_a_delta_of_an_older_version_is_applied(tmp_path):
    chance = np.random.default_rng(5)

    def tuned(values, dtype):
        word = f"<u{values.itemsize}"
        changed = values.view(word).reshape(-1) + chance.integers(-300, 300, values.size, "i8").astype(word)
        return dtype, changed.view(values.dtype).reshape(values.shape)

    tensors = {
        name: (dtype, chance.integers(0, 256, (rows, columns * width), "u1").view(f"<u{width}"))
        for name, dtype, rows, columns, width in [
            ("half", "F16", 7, 333, 2), ("brain", "BF16", 31, 64, 2), ("single", "F32", 5, 201, 4),
            ("double", "F64", 3, 11, 8), ("bytes", "I8", 1, 1023, 1), ("größe", "F16", 1, 1, 2),
        ]
    }  # fmt: skip
    write(tmp_path / "base/model.safetensors", tensors)
    result = {name: tuned(values, dtype) for name, (dtype, values) in tensors.items()}
    write(tmp_path / "target/model.safetensors", result, padding=5)
    old_delta(tmp_path / "base", tmp_path / "target", tmp_path / "delta", chunk=1024)
    *lines, totals = good("apply-delta", tmp_path / "base", tmp_path / "delta", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "target")
    assert [line["tensor"] for line in lines] == list(tensors) and totals["verified"]


def test_an_older_version_refuses_a_delta_that_it_cannot_read_and_raw_ones_stay_as_they_were(tmp_path):
    base, target = pair(tmp_path)
    for codec, written, version in (("zstd", "planes", 2), ("raw", "raw", 1)):
        good("make-delta", base, target, tmp_path / codec, "--codec", codec)
        value = json.loads((tmp_path / codec / "delta.json").read_text())
        assert (value["codec"], value["version"]) == (written, version)  # version 1 alone was known to older ones
    value.pop("blake3")
    for change, said in [
        ({"version": 3}, "version 3, method 'bits': made by a newer vtools"),
        ({"codec": "planes"}, "version 1 has no codec 'planes'"),
        ({"version": 2, "codec": "lz4"}, "version 2 has no codec 'lz4'"),
    ]:
        (tmp_path / "raw/delta.json").write_bytes(manifest.seal(value | change))
        assert said in bad("apply-delta", base, tmp_path / "raw", tmp_path / "out")


def test_a_damaged_plane_is_reported_with_its_tensor(tmp_path):
    base, target = pair(tmp_path)
    good("make-delta", base, target, tmp_path / "delta")
    shard = tmp_path / "delta/delta-00001-of-00001.safetensors"
    raw = bytearray(shard.read_bytes())
    start = 8 + struct.unpack("<Q", raw[:8])[0]
    places = json.loads(raw[8:start])
    raw[start + places["model.layers.0.w"]["data_offsets"][0]] = 3  # of the four bits that may be set apart
    shard.write_bytes(raw)
    error = bad("apply-delta", base, tmp_path / "delta", tmp_path / "out")
    assert f"{shard}: tensor model.layers.0.w: wrong length: the delta is damaged; download it again" in error
