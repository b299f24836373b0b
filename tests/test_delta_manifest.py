"""delta.json comes from a stranger: whatever it says, the answer is a model or one clear line."""

import copy

import pytest
from checkpoints import pair
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import bad, good

orjson = pytest.importorskip("orjson")
pytest.importorskip("blake3")

from vtools.delta import manifest, other_files  # noqa: E402
from vtools.process import Failure  # noqa: E402


@pytest.fixture(scope="module")
def delta(tmp_path_factory):
    folder = tmp_path_factory.mktemp("manifest")
    base, target = pair(folder)
    good("make-delta", base, target, folder / "delta")
    value = orjson.loads((folder / "delta/delta.json").read_bytes())
    del value["blake3"]
    return folder, value


def places(value, path=()):
    """Every place in a JSON value, by the keys that lead there."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def changed(value, path, new):
    value = copy.deepcopy(value)
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = new
    return value


ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63), st.floats(allow_nan=False), st.text(max_size=5),
    st.lists(st.one_of(st.integers(-9, 9), st.text(max_size=2)), max_size=3), st.just({}),
)  # fmt: skip


@settings(max_examples=600, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_in_any_place_is_a_manifest_or_one_clear_line(delta, tmp_path_factory, data):
    folder, value = delta
    path = data.draw(st.sampled_from(list(places(value))))
    place = folder / "changed"
    place.mkdir(exist_ok=True)
    (place / "delta.json").write_bytes(manifest.seal(changed(value, path, data.draw(ANYTHING))))
    try:
        found, _ = manifest.load(place)
    except Failure as failure:
        assert len(str(failure).splitlines()) == 1
        return
    for file in found.files:  # what it passes on can be counted with
        sizes = [file.bytes, *(change.bytes for change in file.tensors), *(length for _, length in file.gaps())]
        assert all(type(size) is int and size >= 0 for size in sizes)
        assert file.delta is None or sum(sizes[1:]) == file.bytes


@pytest.mark.parametrize(
    ("path", "new", "said"),
    [
        (("files", 1, "tensors", 0, "chunks"), None, "not a manifest"),
        (("files", 1, "tensors", 0, "start"), 96.0, "not a whole number"),
        (("files", 1, "tensors", 0, "shape"), 5, "not a manifest"),
        (("files", 1, "tensors", 0, "name"), ["a"], "not a text"),
        (("files", 1, "bytes"), 1 << 40, "of it are not tensors"),
        (("files", 1, "path"), "./config.json", "named twice"),
        (("files", 0, "bytes"), -5, "not a whole number"),
        (("files", 0, "bytes"), 5, "config.json: size or SHA-256 differs"),
        (("files", 0, "path"), "../config.json", "leads out of the folder"),
        (("files",), [], "no files"),
        (("chunk_bytes",), 1 << 40, "chunks of"),
    ],
)
def test_a_strangers_mistakes_are_named_and_nothing_is_written(delta, path, new, said):
    folder, value = delta
    assert [file["path"] for file in value["files"]] == ["config.json", "model.safetensors"]
    (folder / "delta/delta.json").write_bytes(manifest.seal(changed(value, path, new)))
    error = bad("apply-delta", folder / "base", folder / "delta", folder / "out")
    assert said in error and "please report" not in error
    assert not any(folder.glob("out*"))


def test_the_files_of_a_base_that_a_delta_names_stay_the_same():
    """Another list, or another order, would give another delta.json."""
    names = ("config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "added_tokens.json")
    assert names == other_files.IDENTITY
