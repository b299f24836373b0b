"""The tensors of a PyTorch file (torch.save, .bin or .pt), found without torch and without executing its pickle.

The file is a zip of uncompressed records: NAME/data.pkl, a pickle that describes the tensors, and NAME/data/KEY, the
bytes of each storage (torch/serialization.py, caffe2/serialize/inline_container.h). A pickle is a program that may
call anything. Here `pickletools` parses its instructions, and `read_pickle` interprets only those that a state dict
needs; it cannot import or call. The names that a file may use are the table `NAMES`. Python's own Unpickler, even
restricted by `find_class`, would let ten bytes allocate gigabytes or hash forever.
"""

import io
import math
import os
import pickletools
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtools.process import Failure
from vtools.weights.tensor import WIDTHS, Tensor, dtype_name

LONGEST = 8 << 20  # bytes of data.pkl and of the zip's directory: enough for 50,000 tensors
MOST_DIMENSIONS = 64  # of a torch tensor
ADVICE = "load the model once with transformers and save it again, which writes safetensors"
LEGACY = (
    b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled magic number that files before torch 1.6 begin with
)

# Every name that a pickle may use, with its dtype if it has one.
NAMES = {
    "collections OrderedDict": "", "torch Size": "", "torch._utils _rebuild_tensor_v2": "",
    "torch._utils _rebuild_tensor_v3": "", "torch._utils _rebuild_parameter": "", "torch.storage UntypedStorage": "U8",
    "torch BoolStorage": "BOOL", "torch ByteStorage": "U8", "torch CharStorage": "I8", "torch ShortStorage": "I16",
    "torch IntStorage": "I32", "torch LongStorage": "I64", "torch HalfStorage": "F16", "torch BFloat16Storage": "BF16",
    "torch FloatStorage": "F32", "torch DoubleStorage": "F64", "torch ComplexFloatStorage": "C64",
    "torch uint16": "U16", "torch uint32": "U32", "torch uint64": "U64", "torch float8_e4m3fn": "F8_E4M3",
    "torch float8_e5m2": "F8_E5M2", "torch float8_e8m0fnu": "F8_E8M0",
}  # fmt: skip
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
VALUES = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
    "SHORT_BINBYTES", "BINBYTES",
}  # fmt: skip
LENGTHS = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True, slots=True)
class Name:
    """A name of `NAMES`, without any object behind it."""

    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """A record with the bytes of one or more tensors: `elements` of `dtype`."""

    key: str
    dtype: str
    elements: int


@dataclass(frozen=True, slots=True)
class View:
    """A tensor as described by the pickle, unchecked; `offset` and `stride` count elements."""

    storage: Storage
    dtype: str
    offset: Any
    shape: Any
    stride: Any
    plain: bool


@dataclass(frozen=True, slots=True)
class Record:
    """One file of the zip; `start` is the file offset of its first byte."""

    start: int
    bytes: int
    checksum: int


class Short(io.FileIO):
    """A file that refuses large reads: a damaged zip may claim a directory of gigabytes."""

    def read(self, size: int | None = -1, /) -> bytes:  # type: ignore[override]
        if size is not None and size > LONGEST:
            raise zipfile.BadZipFile("its directory is too long")
        return super().read(size) or b""


def tensors(file: Path) -> list[Tensor]:
    """The tensors of a state dict (or of one under the key `state_dict` or `model`), in its order.

    Values that are not tensors are skipped. Raises Failure, also for a pickle with anything that a state dict does not
    need.
    """
    with Short(file) as stream:
        begin = stream.read(512)
        if begin.startswith(LEGACY):
            raise Failure(f"{file}: in the format of PyTorch before 1.6, which is not supported; {ADVICE}")
        if not begin.startswith(b"PK\x03\x04"):
            raise Failure(f"{file}: not written by torch.save, or cut off; if PyTorch can read it, {ADVICE}")
        try:
            root, records = read_directory(stream)
            content = read_pickle(pickle_of(stream, root, records))
            found = []
            for name, view in state_dict(content).items():
                name.encode()  # a lone surrogate could not be written as JSON
                found.append(locate(name, view, root, records, file))
        except Refused as refused:
            raise Failure(f"{file}: {refused}") from None
        except (
            zipfile.BadZipFile, ArithmeticError, AttributeError, EOFError, LookupError, MemoryError,
            NotImplementedError, RecursionError, TypeError, ValueError, struct.error,
        ) as error:  # fmt: skip
            about = str(error) if isinstance(error, zipfile.BadZipFile) else "its pickle or its zip is not well formed"
            raise Failure(f"{file}: damaged or cut off: {about}") from None
    if not found:
        raise Failure(f"{file}: no tensor in it")
    return found


class Refused(Exception):
    """What is wrong with a file, to be printed after its name."""


def read_directory(stream: Short) -> tuple[str, dict[str, Record]]:
    """The folder of data.pkl inside the zip, and every record by name.

    The start of a record follows only from the header before it, which must agree with the directory at the end.
    """
    with zipfile.ZipFile(stream) as archive:
        entries, directory = archive.infolist(), archive.start_dir
    entries.sort(key=lambda entry: entry.header_offset)
    records: dict[str, Record] = {}
    for entry, end in zip(entries, [*(entry.header_offset for entry in entries[1:]), directory], strict=True):
        shown = printable(entry.filename)
        if entry.filename in records:
            raise Refused(f"two records are named {shown}: refused")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.compress_size != entry.file_size:
            raise Refused(f"record {shown} is compressed or encrypted, which torch.save never does; {ADVICE}")
        if not 0 <= entry.header_offset <= directory - 30:
            raise Refused(f"record {shown} is outside the file: damaged")
        name = entry.orig_filename.encode("utf-8" if entry.flag_bits & 0x800 else "cp437")
        header = os.pread(stream.fileno(), 30 + len(name), entry.header_offset)
        *about, length, extra = struct.unpack("<4s2xHH16xHH", header[:30])
        if about != [b"PK\x03\x04", entry.flag_bits, zipfile.ZIP_STORED] or header[30:] != name or length != len(name):
            raise Refused(f"record {shown} is not where the directory says: damaged")
        start = entry.header_offset + 30 + length + extra
        gap = end - start - entry.file_size
        fits = gap == 0
        if entry.flag_bits & 8:  # checksum and sizes are repeated after the data, in 4 or 8 bytes each
            again = struct.pack("<4sI", b"PK\x07\x08", entry.CRC)
            fits = gap in (16, 24) and os.pread(stream.fileno(), 8, end - gap) == again
        if not fits:
            raise Refused(f"record {shown} does not end where the next begins: damaged, or not written by torch.save")
        records[entry.filename] = Record(start, entry.file_size, entry.CRC)
    roots = [name.removesuffix("/data.pkl") for name in records if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise Refused(f"{len(roots) or 'no'} data.pkl in it: not a file of torch.save")
    order = records.get(f"{roots[0]}/byteorder")
    if order and os.pread(stream.fileno(), min(order.bytes, 16), order.start) != b"little":
        raise Refused(f"its numbers are not little-endian, which is not read; {ADVICE}")
    return roots[0], records


def pickle_of(stream: Short, root: str, records: dict[str, Record]) -> bytes:
    """The bytes of data.pkl."""
    record = records[f"{root}/data.pkl"]
    if record.bytes > LONGEST:
        raise Refused(f"a pickle of {record.bytes} bytes: refused")
    data = os.pread(stream.fileno(), record.bytes, record.start)
    if zlib.crc32(data) != record.checksum:
        raise Refused("data.pkl does not have its checksum: damaged")
    return data


def read_pickle(data: bytes) -> Any:
    """The content of a state dict's pickle, with `View` for a tensor; attributes set on objects are skipped.

    Instructions are named as in `pickletools`. Raises Refused for an instruction that no state dict needs or a name
    not in `NAMES`; IndexError, KeyError, TypeError or ValueError if the pickle is damaged.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}

    def take(begin: int) -> tuple[Any, ...]:
        if begin < 0:
            raise IndexError("nothing to take")
        values = tuple(stack[begin:])
        del stack[begin:]
        return values

    for instruction, argument, _ in pickletools.genops(data):
        name = instruction.name
        if name in VALUES:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(take(marks.pop()))
        elif name in LENGTHS:
            stack.append(take(len(stack) - LENGTHS[name]))
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name in ("SETITEM", "SETITEMS"):
            values = take(marks.pop() if name == "SETITEMS" else len(stack) - 2)
            for key, value in zip(values[::2], values[1::2], strict=True):
                if isinstance(key, str):  # tensors have names; other keys could be made slow to hash
                    stack[-1][key] = value
        elif name in ("APPEND", "APPENDS"):
            values = take(marks.pop() if name == "APPENDS" else len(stack) - 1)
            stack[-1].extend(values)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            wanted = str(argument) if name == "GLOBAL" else " ".join(take(len(stack) - 2))
            if wanted not in NAMES:
                shown = printable(wanted.replace(" ", ".", 1))
                raise Refused(f"its pickle asks for {shown}: refused; nothing was run")
            stack.append(Name(wanted))
        elif name == "BINPERSID":
            stack.append(storage(stack.pop()))
        elif name == "REDUCE":
            what, values = take(len(stack) - 2)
            stack.append(build(what.name, values))
        elif name == "BUILD":  # an attribute such as _metadata
            stack.pop()
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise Refused(f"its pickle uses {name}, which no state dict needs: refused; nothing was run")
    raise ValueError("no STOP")


def storage(identity: Any) -> Storage:
    """The storage that a persistent id names."""
    kind, about, key, _, elements = identity
    if kind != "storage" or not isinstance(key, str) or not whole(elements) or not NAMES[about.name]:
        raise ValueError("not a storage")
    return Storage(key, NAMES[about.name], elements)


def build(name: str, values: tuple[Any, ...]) -> Any:
    """The result of calling a name in `NAMES`."""
    if name == "collections OrderedDict" and not values:
        return {}
    if name == "torch Size":
        return values[0]
    if name == "torch._utils _rebuild_parameter":
        return values[0]
    if name in ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3"):
        own = name.endswith("v3")  # it gives the dtype of an untyped storage
        held, offset, shape, stride, _, _, *rest = values
        dtype = NAMES[rest.pop(0).name] if own else held.dtype
        # the rest says whether the values are conjugate or negative views of the bytes
        return View(held, dtype, offset, shape, stride, not any(rest))
    raise ValueError("a call that no state dict needs")


def state_dict(content: Any) -> dict[str, View]:
    """The tensors of a dict, or of the dict under a usual key of a training checkpoint."""
    if not isinstance(content, dict):
        return {}
    found = {name: value for name, value in content.items() if isinstance(value, View)}
    for key in ("state_dict", "model"):
        if not found and isinstance(content.get(key), dict):
            found = {name: value for name, value in content[key].items() if isinstance(value, View)}
    return found


def locate(name: str, view: View, root: str, records: dict[str, Record], file: Path) -> Tensor:
    """Where the bytes of a tensor are, checked against their record."""
    shown = f"tensor {printable(name)}"
    held, shape, stride = view.storage, view.shape, view.stride
    if not isinstance(held, Storage):
        raise ValueError("a tensor without a storage")
    record = records.get(f"{root}/data/{held.key}")
    if record is None:
        raise Refused(f"{shown}: its storage data/{printable(held.key)} is missing")
    if held.elements * WIDTHS[held.dtype] != record.bytes:
        raise Refused(f"{shown}: {record.bytes} bytes do not make {held.elements} of {dtype_name(held.dtype)}: damaged")
    sizes = [*shape, *stride, view.offset]
    if len(shape) != len(stride) or len(shape) > MOST_DIMENSIONS or not all(map(whole, sizes)):
        raise ValueError("not a shape")
    width = WIDTHS[view.dtype]
    size = math.prod(shape) * width
    step = 1
    for length, jump in zip(reversed(shape), reversed(stride), strict=True):
        if size and length != 1 and jump != step:
            raise Refused(f"{shown} is not contiguous in its storage; {ADVICE}")
        step *= length
    if not view.plain:
        raise Refused(f"{shown} is a conjugate or negative view of its bytes; {ADVICE}")
    if view.offset * width + size > record.bytes:
        raise Refused(f"{shown} reaches outside of its storage: damaged")
    return Tensor(name, view.dtype, tuple(shape), file, record.start + view.offset * width, size)


def whole(value: Any) -> bool:
    """Whether it is a count that a 64-bit machine could have."""
    return type(value) is int and 0 <= value < 1 << 63


def printable(text: str) -> str:
    """A name from the file, made printable for a message."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:100])
