"""PyTorch files: every tensor found where it lies, and nothing in them ever run."""

import collections
import contextlib
import functools
import os
import pickle
import random
import struct
import subprocess
import sys
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running import measured, python

from vtools.process import Failure
from vtools.weights import pickled
from vtools.weights.tensor import Files


def read(file):
    """Name -> (dtype, shape, bytes), read as the tools read."""
    found = {}
    with Files() as files:
        for tensor in pickled.tensors(file):
            data = bytearray(tensor.bytes)
            files.read(tensor.file, tensor.start, memoryview(data))
            assert tensor.name not in found
            found[tensor.name] = (tensor.dtype, tensor.shape, bytes(data))
    return found


def written(tensors, dtypes):
    """The same of torch's own tensors."""
    import torch

    return {
        name: (
            dtypes[str(tensor.dtype)],
            tuple(tensor.shape),
            tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"",
        )
        for name, tensor in tensors.items()
    }


def refused(file):
    with pytest.raises(Failure) as caught:
        pickled.tensors(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ") and "\n" not in message, message
    return message


DTYPES = {
    "torch.float16": "F16", "torch.bfloat16": "BF16", "torch.float32": "F32", "torch.float64": "F64",
    "torch.int64": "I64", "torch.int32": "I32", "torch.int16": "I16", "torch.int8": "I8", "torch.uint8": "U8",
    "torch.bool": "BOOL", "torch.complex64": "C64", "torch.uint16": "U16", "torch.uint32": "U32",
    "torch.uint64": "U64", "torch.float8_e4m3fn": "F8_E4M3", "torch.float8_e5m2": "F8_E5M2",
}  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_every_tensor_that_torch_saves_is_found_with_its_bytes_in_the_order_of_the_dict(tmp_path, protocol):
    torch = pytest.importorskip("torch")
    base = torch.arange(60, dtype=torch.float32)
    tied = torch.randn(7, 3).bfloat16()
    held = collections.OrderedDict(
        (name, torch.randint(0, 2, (3, 5)).to(getattr(torch, name.removeprefix("torch.")))) for name in DTYPES
    )
    held |= {
        "scalar": torch.tensor(3.5, dtype=torch.float16),
        "flag": torch.tensor(True),
        "empty": torch.empty(0, 4),
        "empty after a storage": base[60:],
        "a view": base[12:36].view(4, 6),
        "one of a row": base.view(6, 10)[3],
        "strides that do not matter": base.view(6, 10, 1).transpose(1, 2)[2:3],
        "tied": tied,
        "tied too": tied,
        "tied, seen as a row": tied.view(-1),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
        "no gradient": torch.nn.Parameter(torch.tensor([1, 2]), requires_grad=False),
        "имя: ☃": torch.ones(1),
        "": torch.ones(2),
    }
    file = tmp_path / "weights.bin"
    torch.save(held, file, pickle_protocol=protocol)
    found = read(file)
    assert list(found) == list(held)
    assert found == written(held, DTYPES)
    places = {tensor.name: tensor.start for tensor in pickled.tensors(file)}
    assert places["tied"] == places["tied too"] == places["tied, seen as a row"]


def test_a_module_with_its_metadata_and_buffers_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Embedding(5, 2)).half()
    assert module.state_dict()._metadata
    torch.save(module.state_dict(), tmp_path / "module.pt")
    assert read(tmp_path / "module.pt") == written(module.state_dict(), DTYPES)


def test_values_that_are_no_tensors_are_left_out_and_the_dict_of_a_training_checkpoint_is_found(tmp_path):
    torch = pytest.importorskip("torch")
    weights = {"a": torch.ones(3), "b": torch.zeros(2, dtype=torch.bool)}
    noise = {"epoch": 3, "loss": 0.5, "seen": [1, "x", None, (True,)], "more": {"x": b"raw", 5: 2**80}, 7: torch.ones(1)}  # fmt: skip
    for number, content in enumerate([weights | noise, {"state_dict": weights, **noise}, {**noise, "model": weights}]):
        file = tmp_path / f"{number}.pt"
        torch.save(content, file, pickle_protocol=4)
        assert read(file) == written(weights, DTYPES)
    torch.save({"outer": {"inner": weights}}, tmp_path / "deep.pt")
    assert "no tensor" in refused(tmp_path / "deep.pt")
    torch.save(torch.ones(3), tmp_path / "alone.pt")
    assert "no tensor" in refused(tmp_path / "alone.pt")


def test_what_is_not_the_plain_bytes_of_a_tensor_is_refused_by_name_with_what_to_do(tmp_path):
    torch = pytest.importorskip("torch")
    square = torch.arange(16.0).view(4, 4)
    for name, tensor in {
        "transposed": square.t(),
        "a column": square[:, 1],
        "every other row": square[::2],
        "repeated": torch.ones(1).expand(3, 3),
        "conjugate": torch.ones(3, dtype=torch.complex64).conj(),
        "negative": torch.ones(3, dtype=torch.complex64).conj().imag,
    }.items():
        torch.save({"good": square, name: tensor}, tmp_path / "weights.bin")
        message = refused(tmp_path / "weights.bin")
        assert f"tensor {name} " in message and "safetensors" in message
    torch.save({"sparse": square.to_sparse()}, tmp_path / "weights.bin")
    assert "asks for torch._utils._rebuild_sparse_tensor: refused; nothing was run" in refused(tmp_path / "weights.bin")


def test_other_formats_are_refused_with_what_to_do(tmp_path):
    torch = pytest.importorskip("torch")
    file = tmp_path / "weights.bin"
    torch.save({"a": torch.ones(3)}, file, _use_new_zipfile_serialization=False)
    message = refused(file)
    assert "before 1.6" in message and "safetensors" in message
    for data in (b"", b"PK", b"\x80\x02}.", b"GGUF" + bytes(600), os.urandom(4000), b"PK\x03\x04" + bytes(4000)):
        file.write_bytes(data)
        refused(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("notes.txt", "hello")
    assert "no data.pkl" in refused(file)


# Pickles by hand, so that what torch and pickle would never write can be written.


def persistent(key="0", kind=b"cHalfStorage", elements=6):
    kind = kind.replace(b"c", b"ctorch\n", 1) + b"\n"
    return b"(" + text("storage") + kind + text(key) + text("cpu") + number(elements) + b"tQ"


def text(value):
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value):
    return b"\x8a" + bytes([len(raw := pickle.encode_long(value))]) + raw


def many(values):
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(store=None, offset=0, shape=(2, 3), stride=(3, 1)):
    store = persistent() if store is None else store
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + store + number(offset) + many(shape) + many(stride) + b"\x89}tR"


def program(*values):
    """A dict of the names w0, w1, ..."""
    return b"\x80\x02}(" + b"".join(text(f"w{place}") + value for place, value in enumerate(values)) + b"u."


def archive(file, instructions, storages=(b"halfhalfhalf",), method=zipfile.ZIP_STORED, **more):
    with zipfile.ZipFile(file, "w", method) as made:
        made.writestr("x/data.pkl", instructions)
        for place, data in enumerate(storages):
            made.writestr(f"x/data/{place}", data)
        for name, data in more.items():
            made.writestr(name.replace("__", "/"), data)
    return file


def test_a_file_made_by_hand_is_read(tmp_path):
    file = archive(tmp_path / "w.bin", program(tensor(), tensor(offset=2, shape=(4,), stride=(1,))), x__byteorder="little")  # fmt: skip
    assert read(file) == {"w0": ("F16", (2, 3), b"halfhalfhalf"), "w1": ("F16", (4,), b"halfhalf")}


def test_a_zip64_file_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 5)
    file = archive(tmp_path / "w.bin", program(tensor(), tensor(persistent("1"))), [b"halfhalfhalf", b"fullfullfull"])
    assert b"PK\x06\x06" in file.read_bytes()
    monkeypatch.undo()
    assert [data for _, _, data in read(file).values()] == [b"halfhalfhalf", b"fullfullfull"]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (tensor(offset=1), "outside"),
        (tensor(offset=2**62), "outside"),
        (tensor(shape=(3, 3)), "outside"),
        (tensor(shape=(2**62, 2**62), stride=(2**62, 1)), "outside"),
        (tensor(shape=(0, 3), offset=7), "outside"),
        (tensor(offset=-1), "damaged"),
        (tensor(shape=(-2, -3)), "damaged"),
        (tensor(shape=(2**64,), stride=(1,)), "damaged"),
        (tensor(shape=(1,) * 65, stride=(1,) * 65), "damaged"),
        (tensor(shape=(2, 3), stride=(1,)), "damaged"),
        (tensor(shape=(3, 2), stride=(1, 3)), "not contiguous"),
        (tensor(store=persistent("9")), "data/9 is missing"),
        (tensor(store=persistent("../data.pkl")), "missing"),
        (tensor(store=persistent(elements=5)), "do not make 5 of fp16"),
        (tensor(store=persistent(elements=2**70)), "damaged"),
        (tensor(store=persistent(kind=b"cSize")), "damaged"),
        (tensor(store=text("0")), "damaged"),
        (persistent() + b"0" + text("x"), "uses POP"),
        (b"ctorch\nFloatStorage\n)R", "damaged"),
        (b"ccollections\nOrderedDict\n(]tR", "damaged"),
        (b"\x85R", "damaged"),
        (b"h\x07", "damaged"),
        (b"X\xff\xff\xff\xffshort", "damaged"),
        (b"\x8b\xff\xff\xff\x7f", "damaged"),
        (b"\x8b\x01\x00\x00\x00\x07", "uses LONG4"),
    ],
)
def test_a_damaged_description_is_refused(tmp_path, bad, said):
    assert said in refused(archive(tmp_path / "w.bin", program(tensor(), bad)))


def test_a_name_that_could_not_be_written_is_refused(tmp_path):
    assert "damaged" in refused(archive(tmp_path / "w.bin", b"\x80\x02}" + text("\ud800") + tensor() + b"s."))


def test_a_damaged_or_hostile_zip_is_refused(tmp_path):
    good = program(tensor())
    file = tmp_path / "w.bin"
    assert "compressed" in refused(archive(file, good, method=zipfile.ZIP_DEFLATED))
    assert "compressed" in refused(archive(file, bytes(1 << 28), (), method=zipfile.ZIP_DEFLATED))
    assert "little-endian" in refused(archive(file, good, x__byteorder="big"))
    assert "2 data.pkl" in refused(archive(file, good, y__data__0=b"evil", y__data__pkl=b"", **{"y/data.pkl": good}))
    assert "pickle of 9000000 bytes" in refused(archive(file, bytes(9_000_000)))
    with pytest.warns(UserWarning), zipfile.ZipFile(archive(file, good), "a") as made:
        made.writestr("x/data/0", b"evilevilevil")
    assert "two records" in refused(file)

    raw = archive(file, good).read_bytes()
    central = raw.index(b"PK\x01\x02")
    second = raw.index(b"PK\x01\x02", central + 4)

    def changed(place, value):
        file.write_bytes(raw[:place] + value + raw[place + len(value) :])
        return refused(file)

    assert "checksum" in changed(raw.index(b"_rebuild_tensor_v2") + 17, b"3")
    assert "checksum" in changed(central + 16, b"\0\0\0\0")
    place = raw.index(b"x/data/0") - 30
    for wrong in (0, place - 1, place + 1, len(raw) + 5):
        assert "does not end" in changed(second + 42, struct.pack("<I", wrong))
    assert "damaged" in changed(central + 42, struct.pack("<I", 4_000_000_000))
    for size in (4, 400, 4_000_000_000):
        assert "does not end" in changed(second + 20, struct.pack("<II", size, size))
    assert "does not end" in changed(place + 28, b"\4")  # all bytes of the tensors moved by four
    assert "not where" in changed(raw.index(b"x/data/0"), b"x/data/1")
    with open(file, "wb") as stream:  # a directory of 4 GB, of which no more than its length is looked at
        stream.write(raw)
        stream.seek(5_000_000_000)
        stream.write(raw[-22:-10] + struct.pack("<II", 4_000_000_000, 0) + bytes(2))
    assert "directory is too long" in refused(file)

    file.write_bytes(b"PK\x03\x04 something before" + raw)  # as a self-extracting archive has it
    assert read(file)["w0"][2] == b"halfhalfhalf"


class Run:
    """Pickled, a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile(marker):
    """Pickles that write `marker` when they are loaded by Python's pickle, and some that are known ways around."""
    touch = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w')"
    line = touch.encode()
    frame = (b"\x80\x04", b".")
    yield "posix.system", pickle.dumps({"w": Run(os.system, touch)}, 2)
    yield "posix.system", pickle.dumps({"w": Run(os.system, touch)}, 4)
    yield "__builtin__.eval", pickle.dumps({"w": Run(eval, code)}, 2)
    yield "builtins.exec", pickle.dumps(Run(exec, code), 4)
    at_once = functools.partial(open, str(marker), "w")  # before Popen returns, where `touch` could come too late
    yield "subprocess.Popen", pickle.dumps(Run(subprocess.Popen, ["true"], -1, None, None, None, None, at_once), 5)
    yield "__builtin__.getattr", pickle.dumps(Run(getattr, "", "format"), 2)
    yield "posix.system", b"cposix\nsystem\n(" + text(touch) + b"tR."
    yield "STRING", b"(" + b"S'" + line + b"'\niposix\nsystem\n."
    yield "INST", b"(" + text(touch) + b"iposix\nsystem\n."
    yield "posix.system", b"(cposix\nsystem\n" + text(touch) + b"o."
    yield "OBJ", b"(ccollections\nOrderedDict\no."
    yield "NEWOBJ", b"ccollections\nOrderedDict\n)\x81."
    yield "NEWOBJ_EX", b"\x80\x04ccollections\nOrderedDict\n)}\x92."
    yield "EXT1", b"\x82\x01."
    yield "PERSID", b"Pposix.system\n."
    yield "DUP", b"}2."
    yield "collections.OrderedDict.__reduce__", text("collections") + text("OrderedDict.__reduce__") + b"\x93)R."
    yield "torch._utils._rebuild_tensor_v2.__globals__", text("torch._utils") + text("_rebuild_tensor_v2.__globals__") + b"\x93."  # fmt: skip
    yield "torch._utils._import_dotted_name", frame[0] + text("torch._utils") + text("_import_dotted_name") + b"\x93" + text("os.system") + b"\x85R" + text(touch) + b"\x85R" + frame[1]  # fmt: skip
    yield "torch.load", b"ctorch\nload\n" + text(str(marker)) + b"\x85R."
    yield "torch.hub.load", b"ctorch.hub\nload\n" + text("a/b") + b"\x85R."
    yield "torch.serialization.load", b"ctorch.serialization\nload\n."
    yield "torch.jit.load", b"ctorch.jit\nload\n."
    yield "runpy._run_code", b"crunpy\n_run_code\n" + text(code) + b"\x85R."
    yield "numpy.core.multiarray._reconstruct", b"cnumpy.core.multiarray\n_reconstruct\n."
    yield "_codecs.encode", b"c_codecs\nencode\n."
    yield "__builtin__.set", b"c__builtin__\nset\n]\x85R."
    yield "vtools.process.Failure", b"cvtools.process\nFailure\n."
    # Attributes set on what the table names: nothing is set, and what is called afterwards is still nothing.
    yield "posix.system", b"ccollections\nOrderedDict\n}" + text("__setstate__") + b"cposix\nsystem\nsb" + text(touch) + b"b."  # fmt: skip
    yield "torch. FloatStorage", b"ctorch\n FloatStorage\n."
    yield "?[31mos.system", b"c\x1b[31mos\nsystem\n."


HOSTILE = [name for name, _ in hostile("marker")]


@pytest.mark.parametrize("number", range(len(HOSTILE)), ids=HOSTILE)
def test_a_malicious_pickle_is_refused_and_nothing_is_run(tmp_path, number):
    marker = tmp_path / "marker"
    name, instructions = list(hostile(marker))[number]
    message = refused(archive(tmp_path / "w.bin", instructions))
    assert f" {name}" in message and "refused; nothing was run" in message
    assert not marker.exists()


def test_the_malicious_pickles_do_run_where_pickle_loads_them(tmp_path):
    worked = set()
    for name, instructions in hostile(tmp_path / "marker"):
        if str(tmp_path).encode() not in instructions or b"torch" in instructions:
            continue
        (tmp_path / "marker").unlink(missing_ok=True)
        (tmp_path / "pickled").write_bytes(instructions)
        code = "import pickle\npickle.load(open('pickled', 'rb'))"
        python(code, cwd=tmp_path)
        if (tmp_path / "marker").exists():
            worked.add(name)
    assert worked >= {"posix.system", "__builtin__.eval", "builtins.exec", "subprocess.Popen", "INST", "STRING"}


def test_attributes_set_on_allowed_things_change_nothing(tmp_path):
    state = b"}" + text("append") + text("x") + text("__class__") + text("y") + b"u"
    kept = b"ccollections\nOrderedDict\n)R" + b"(" + text("w") + tensor() + b"u" + state.replace(b"}", b"}(") + b"b."
    assert read(archive(tmp_path / "w.bin", kept)) == {"w": ("F16", (2, 3), b"halfhalfhalf")}


@pytest.mark.parametrize(
    "instructions",
    [
        pytest.param(b"]r\xff\xff\xff\xff.", id="a memo of 32 GB"),
        pytest.param(b"\x8e" + struct.pack("<Q", 1 << 40) + b".", id="bytes of 1 TB"),
        pytest.param(b"\x8d" + struct.pack("<Q", 1 << 62) + b".", id="a text without end"),
        pytest.param(b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".", id="a bytearray of 1 TB"),
        pytest.param(b"I" + b"9" * 1_000_000 + b"\n.", id="a number of a million digits"),
        pytest.param(b"}" + b")q\x00" + b"h\x00h\x00\x86q\x00" * 64 + b"Ns.", id="a key that is hashed without end"),
        pytest.param(
            b"ccollections\nOrderedDict\n]" + b")q\x00" + b"h\x00h\x00\x86q\x00" * 64 + b"N\x86a\x85R.",
            id="one within a list",
        ),
        pytest.param(b")" + b"\x85" * 1_000_000 + b".", id="tuples in tuples"),
        pytest.param(
            b"}" + b"".join(number((2**61 - 1) * n) + b"Ns" for n in range(60_000)) + b".", id="keys of one hash"
        ),
        pytest.param(b"]q\x00h\x00a.", id="a list that holds itself"),
        pytest.param(b"(" * 1_000_000 + b".", id="marks"),
    ],
)
def test_a_small_file_cannot_take_much_memory_or_time(tmp_path, instructions):
    file = archive(tmp_path / "w.bin", instructions)
    code = (
        "import sys; from pathlib import Path; from vtools import process; from vtools.weights import pickled\n"
        "try: pickled.tensors(Path(sys.argv[1]))\n"
        "except process.Failure: pass\n"
        "else: sys.exit(1)"
    )
    done, _, memory = measured([sys.executable, "-c", code, str(file)], timeout=120)  # minutes would be too much
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert memory < 400_000_000


def test_reading_imports_neither_torch_nor_what_a_file_names(tmp_path):
    file = archive(tmp_path / "w.bin", program(tensor(), b"cantigravity\nfly\n."))
    code = (
        "import sys; from pathlib import Path; from vtools import process; from vtools.weights import pickled\n"
        "try: pickled.tensors(Path(sys.argv[1]))\n"
        "except process.Failure as failure: print(failure)\n"
        "assert not {'torch', 'numpy', 'antigravity'} & set(sys.modules)"
    )
    done = python(code, file)
    assert not done.errors and b"asks for antigravity.fly" in done.stdout


def whole_or_refused(file, right):
    """Only a Failure, or tensors that lie within the file; True where they are the right ones."""
    try:
        found = pickled.tensors(file)
    except Failure as failure:
        assert "\n" not in str(failure)
        return False
    size = file.stat().st_size
    assert all(0 <= tensor.start <= tensor.start + tensor.bytes <= size for tensor in found)
    assert found == right
    return True


@pytest.mark.parametrize("writer", ["zipfile", "torch"])
def test_of_thousands_of_damaged_files_each_gives_the_right_tensors_or_an_error(tmp_path, writer):
    file = tmp_path / "w.bin"
    if writer == "torch":
        torch = pytest.importorskip("torch")
        torch.save(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).half().state_dict(), file)
    else:
        kept = program(tensor(), tensor(offset=2, shape=(4,), stride=(1,)), tensor(persistent("1")))
        archive(file, kept, (b"halfhalfhalf", b"fullfullfull"), x__byteorder="little", x__version="3\n")
    raw, right = file.read_bytes(), pickled.tensors(file)
    source = random.Random(5)
    same = 0
    for _ in range(2000):
        damaged = bytearray(raw)
        for _ in range(source.choice((1, 1, 1, 2, 8))):
            damaged[source.randrange(len(raw))] ^= 1 << source.randrange(8)
        if not source.randrange(10):
            del damaged[source.randrange(len(raw)) :]
        file.write_bytes(damaged)
        same += whole_or_refused(file, right)
    assert 100 < same < 1900


@pytest.mark.filterwarnings("ignore:invalid escape")
def test_of_thousands_of_damaged_pickles_none_ends_in_anything_but_an_error(tmp_path):
    instructions = program(tensor(), b"ccollections\nOrderedDict\n)R}(" + text("a") + number(7) + b"ub", b"](" + text("x") + b"K\x01\x88e", tensor(persistent("0")))  # fmt: skip
    source = random.Random(6)
    file = tmp_path / "w.bin"
    outcomes = collections.Counter()
    for _ in range(2000):
        damaged = bytearray(instructions)
        for _ in range(source.choice((1, 1, 2, 5, 20))):
            place = source.randrange(len(damaged))
            damaged[place : place + source.choice((0, 1, 1, 1, 3))] = source.choice(
                (
                    b"",
                    source.randbytes(1),
                    source.choice((b"(", b"t", b"R", b"Q", b"b", b"\x93", b"u", b"s", b"e", b"h\x00")),
                )
            )
        try:
            found = pickled.tensors(archive(file, bytes(damaged)))
        except Failure as failure:
            assert "\n" not in str(failure)
            outcomes["refused"] += 1
        else:
            assert all(tensor.start + tensor.bytes <= file.stat().st_size for tensor in found)
            outcomes["read"] += 1
    assert min(outcomes.values()) > 20


@pytest.mark.filterwarnings("ignore:invalid escape")
@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_no_bytes_at_all_end_in_anything_but_what_a_pickle_may_end_in(data):
    expected = (pickled.Refused, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
    with contextlib.suppress(*expected):
        pickled.read_pickle(data)
