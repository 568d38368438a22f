"""The reader of pickles: what is allowed comes as data, everything else is refused unrun."""

import io
import os
import pickle
import struct
import sys
import zipfile

import published_files
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import curriculums
from checkpoint_io import checkpoints, pickle_data, published, tensor_files
from checkpoint_io.network_state import StateError
from checkpoint_io.pickle_data import BUILDERS, OBJECT_NAMES, STORAGE_DTYPES, BadPickleError, Record
from system.errors import UsageError

ALL_NAMES = [*OBJECT_NAMES, *STORAGE_DTYPES, *BUILDERS]
settings.register_profile("project", deadline=None, derandomize=True, database=None)
settings.load_profile("project")


def load(data):
    return pickle_data.load(io.BytesIO(data)).root


def program(*parts):
    """A pickle of protocol 2."""
    return b"\x80\x02" + b"".join(parts) + b"."


def name(full):
    module, _, last = full.rpartition(".")
    return b"c" + f"{module}\n{last}\n".encode()


def text(value):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def archive(data, **members):
    """A .pth file whose pickle is data; members are its storages."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as made:
        made.writestr("archive/data.pkl", data)
        made.writestr("archive/version", "3\n")
        for key, content in members.items():
            made.writestr(f"archive/data/{key}", content)
    return file.getvalue()


def storage(key="0", count=4, kind="torch.FloatStorage"):
    return b"(" + text("storage") + name(kind) + text(key) + text("cpu") + number(count) + b"tQ"


def number(value):
    return b"\x8a\x08" + struct.pack("<q", value)


def numbers(*values):
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(shape, strides, offset=0, stored=None):
    hooks = name("collections.OrderedDict") + b")R"
    rebuild = name("torch._utils._rebuild_tensor_v2")
    stored = storage() if stored is None else stored
    return (
        rebuild + b"(" + stored + number(offset) + numbers(*shape) + numbers(*strides)
        + b"\x89" + hooks + b"tR"
    )  # fmt: skip


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def calls(marker):
    """{what it does: an object whose pickle does it when it is loaded as usual}."""
    touch = f"open({str(marker)!r}, 'w').close()"
    return {
        "posix.system": Call(os.system, f"touch {marker}"),
        "__builtin__.eval": Call(eval, touch),
        "__builtin__.exec": Call(exec, touch),
        "io.open": Call(open, str(marker), "w"),
        "torch.serialization.load": Call(torch.load, str(marker)),
        "__builtin__.getattr": Call(getattr, Call(getattr, torch.load, "__globals__"), "get"),
        "__builtin__.__import__": Call(__import__, "os"),
        "os.makedirs": Call(os.makedirs, str(marker)),
        "torch.hub.load": Call(torch.hub.load, str(marker)),
        "torch.nn.init.zeros_": Call(torch.nn.init.zeros_, torch.zeros(1)),
        "pathlib.PosixPath": marker,
        "__builtin__.bytearray": bytearray(b"x"),
    }


FUNCTIONS = [*calls("x")]


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_call_is_refused_by_name_and_not_run(tmp_path, function, legacy):
    marker = tmp_path / "marker"
    path = tmp_path / "generator.pth"
    torch.save({"state": calls(marker)[function]}, path, _use_new_zipfile_serialization=not legacy)
    for read in (checkpoints.load_generator, tensor_files.read):
        module, name = function.rsplit(".", 1)
        place = rf"_?{module}(\._local)?\.{name}"  # Python 3.13 and 3.14 say io and pathlib so
        with pytest.raises(UsageError, match=f"asks for {place}.*nothing in it was run"):
            read(path)
    assert not marker.exists()
    assert os.listdir(tmp_path) == ["generator.pth"]


def test_a_module_of_the_files_choosing_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "side_effect.py").write_text("raise SystemExit('was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BadPickleError, match="asks for side_effect.anything"):
        load(program(name("side_effect.anything"), b")R"))
    assert "side_effect" not in sys.modules


@pytest.mark.parametrize("full", sorted(OBJECT_NAMES | set(STORAGE_DTYPES)))
def test_no_allowed_class_can_be_called(full):
    for arguments in (b")", b"(" + text("x") + b"t", b"]"):
        with pytest.raises(BadPickleError, match=f"calls {full} as a function; nothing"):
            load(program(name(full), arguments, b"R"))


@pytest.mark.parametrize("full", sorted(BUILDERS))
@pytest.mark.parametrize(
    "arguments",
    [b"]", b"}", b"N", text("x"), b"(" + text("touch x") + text("y") + text("z") + b"t",
     b"(" + b"K\x01" * 6 + b"t", b"((lp0\nt" , b"(" + name("siren.siren.Sine") + b"t"],
)  # fmt: skip
def test_builders_take_only_their_own_arguments(full, arguments):
    with pytest.raises(BadPickleError):
        load(program(name(full), arguments, b"R"))


@pytest.mark.parametrize("full", sorted(OBJECT_NAMES))
def test_an_object_is_only_a_record_of_its_attributes(full):
    attributes = b"}(" + text("__class__") + name(full) + text("__setstate__") + b"K\x01"
    attributes += text("__reduce__") + text("x") + b"u"
    record = load(program(name(full), b")\x81", attributes, b"b"))
    assert type(record) is Record
    assert (record.name, set(record.attributes)) == (
        full,
        {"__class__", "__setstate__", "__reduce__"},
    )
    with pytest.raises(BadPickleError, match="with arguments"):
        load(program(name(full), b"(K\x01t\x81"))


@pytest.mark.parametrize("full", sorted([*STORAGE_DTYPES, *BUILDERS]))
def test_what_is_no_class_has_no_objects(full):
    with pytest.raises(BadPickleError, match="what is no class"):
        load(program(name(full), b")\x81"))


@pytest.mark.parametrize(
    ("parts", "complaint"),
    [
        ([name("siren.siren.Sine"), b"}b"], "attributes of what has none"),
        ([name("siren.siren.Sine"), b")\x81", b"(K\x01K\x02tb"], "attributes that have no names"),
        ([name("siren.siren.Sine"), b")\x81", b"}K\x01K\x02sb"], "attributes that have no names"),
        ([b"}]K\x01s"], "neither text nor number"),
        ([b"})K\x01s"], "neither text nor number"),
        ([b"}N", b"K\x01s"], "neither text nor number"),
        ([b"N", b"K\x01a"], "what is no list"),
        ([b"]", b"K\x01K\x01s"], "what is no dict"),
        ([b"}(K\x01u"], "without a value"),
        ([b"\x8a\x09", b"\xff" * 8 + b"\x01"], "more than 64 bits"),
        ([b"h\x05"], "recalls what it never stored"),
        ([b"q\x05"], "empty stack"),
        ([b"K\x01", b"(R"], "empty stack"),
        ([b"t"], "no mark"),
        ([b"K\x01Q"], "unknown sort of thing"),
        ([b"NQ"], "unknown sort of thing"),
        ([b"(" + text("storage") * 5 + b"tQ"], "storage is malformed"),
        ([b"(" + b"K\x01" * 5 + b"tQ"], "unknown sort of thing"),
        ([storage(count=-1)], "storage is malformed"),
        ([storage(kind="siren.siren.Sine")], "storage is malformed"),
        ([storage(count=4), storage(count=5)], "two sizes or types"),
        ([storage(), storage(kind="torch.HalfStorage")], "two sizes or types"),
        ([b"S'\\8'\n"], "opcode STRING"),
        ([b"I12345\n"], "opcode INT, which no checkpoint needs"),
        ([b"Pos.system\n"], "opcode PERSID"),
        ([b"ios\nsystem\n"], "opcode INST"),
        ([b"(cos\nsystem\no"], "asks for os.system"),
        ([b"\x82\x01"], "opcode EXT1"),
        ([b"\x93"], "opcode STACK_GLOBAL"),
        ([b"\x80\x05"], "another pickle protocol"),
        ([b"X\xff\xff\xff\xff"], "cannot be read"),
        ([b"\x8b\xff\xff\xff\x7f"], "cannot be read"),
    ],
)  # fmt: skip
def test_what_no_checkpoint_needs_is_refused(parts, complaint):
    with pytest.raises(BadPickleError, match=complaint):
        load(program(*parts))


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ((5,), (1,), 0), ((4,), (1,), 1), ((2, 2), (3, 1), 0), ((4, 1), (1,), 0), ((1,), (1,), 9),
        ((-1,), (1,), 0), ((2,), (-1,), 3), ((2**40,), (0,), 0), ((2, 3), (0, 1), 0),
        ((0, 2**62, 2**62), (1, 1, 1), 0), ((1,) * 9, (1,) * 9, 0), ((1,), (1,), -1),
        ((2**62, 2**62), (2**62, 2**62), 2**62),
    ],
)  # fmt: skip
def test_a_tensor_lies_within_its_storage(shape, strides, offset):
    with pytest.raises(BadPickleError):
        load(program(tensor(shape, strides, offset)))


def test_tensors_are_what_torch_wrote(tmp_path):
    base = torch.arange(24.0)
    wanted = {
        "plain": base.view(4, 6),
        "turned": base.view(4, 6).t(),
        "part": base[5:11:2],
        "half": base.half(),
        "double": base.double(),
        "long": torch.arange(5),
        "bfloat": base.bfloat16(),
        "scalar": torch.tensor(3.0),
        "none": torch.zeros(0),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(base),
    }
    for legacy in (False, True):
        torch.save(wanted, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
        found = tensor_files.plain(tensor_files.read(tmp_path / "x.pth"))
        for key, value in wanted.items():
            assert torch.equal(found[key], value), key
            assert found[key].dtype == value.dtype
            assert found[key].stride() == value.stride()


def test_recursion_and_repetition_end(tmp_path):
    path = tmp_path / "x.pth"
    deep = b"".join([b"]" * 20_000, b"a" * 19_999])
    itself = b"]q\x00h\x00a"
    doubled = b"]" + b"".join(b"q" + bytes([i]) + b"]h" + bytes([i]) + b"ah" + bytes([i]) + b"a"
                              for i in range(30))  # fmt: skip
    for body in (deep, itself, doubled):
        path.write_bytes(archive(program(body)))
        with pytest.raises(UsageError):
            checkpoints.read(path, "generator")
        with pytest.raises(BadPickleError):
            tensor_files.plain(load(program(body)))


def test_a_pickle_without_end_is_given_up(monkeypatch):
    monkeypatch.setattr(pickle_data, "MAX_OPCODES", 1000)
    with pytest.raises(BadPickleError, match="longer than any checkpoint's"):
        load(program(b"]" * 1001))


def test_a_module_that_holds_itself_is_refused(tmp_path):
    network = published_files.generator()
    network.siren.final_layer.add_module("again", network.siren)
    published_files.save(network, tmp_path / "generator.pth")
    with pytest.raises(UsageError, match="twice, or modules without end"):
        checkpoints.load_generator(
            tmp_path / "generator.pth", published_curriculum=curriculums.load("CelebA")
        )


plain_data = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(st.text() | st.integers(-(2**62), 2**62), inner, max_size=5)
    ),
    max_leaves=20,
)


@given(plain_data)
@settings(max_examples=60)
def test_plain_data_comes_back(value):
    data = pickle.dumps(value, protocol=2)
    assert repr(load(data)) == repr(value)
    assert repr(tensor_files.plain(load(data))) == repr(value)


def refusal(use, argument):
    """Why a reader refuses; "" where it does not. Any other exception is a failure."""
    try:
        use(argument)
    except (BadPickleError, StateError) as error:
        return str(error)
    return ""


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_random_bytes_are_refused_or_data(data):
    for body in (data, program(data)):
        complaint = refusal(load, body)
        assert len(complaint) < 500
        assert not complaint or complaint.isprintable()


OPCODES = [b"}", b"]", b")", b"(", b"t", b"\x85", b"\x86", b"\x87", b"a", b"e", b"s", b"u", b"R",
           b"b", b"\x81", b"Q", b"N", b"\x88", b"\x89", b"K\x01", b"q\x00", b"h\x00", b"q\x01",
           b"h\x01", b".", text("storage"), text("_modules"), number(3), storage(),
           tensor((2, 2), (2, 1)), *map(name, sorted(ALL_NAMES))]  # fmt: skip


@given(st.lists(st.sampled_from(OPCODES), max_size=40))
@settings(max_examples=600)
def test_random_programs_are_refused_or_data(parts):
    before = set(sys.modules)
    complaint = refusal(load, program(*parts))
    assert set(sys.modules) == before
    if complaint:
        return
    root, storages = pickle_data.load(io.BytesIO(program(*parts)))
    for each in storages.values():
        each.data = bytearray(each.num_bytes)
    inert = (type(None), bool, int, str, dict, list, tuple, set, Record)
    assert isinstance(root, (*inert, pickle_data.Name, pickle_data.Storage, pickle_data.TensorView))
    for use in (published.generator_of, published.average_of, published.discriminator_of,
                published.describe, tensor_files.plain):  # fmt: skip
        refusal(use, root)


def test_a_name_cannot_write_on_the_terminal():
    with pytest.raises(BadPickleError) as caught:
        load(program(b"cos\x1b[2J" + b"x" * 100_000 + b"\nsystem\n"))
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 300
