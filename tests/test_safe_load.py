"""Reading .pth files: allowed names and instructions load, others are refused and never run."""

import os
import pickle
import sys

import published_files
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pickles import archive, name, number, numbers, program, storage, tensor, text

from checkpoint_io import checkpoints, pickle_scan, published, safe_load
from checkpoint_io.network_state import StateError
from checkpoint_io.pickle_scan import ALL_NAMES, OBJECT_NAMES, STORAGE_BYTES
from checkpoint_io.safe_load import Record
from system.errors import UsageError

settings.register_profile("project", deadline=None, derandomize=True, database=None)
settings.load_profile("project")


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Return a function that reads a pickle from a file, whose storage "0" has 16 bytes."""
    path = tmp_path_factory.mktemp("programs") / "file.pth"

    def read(data):
        path.write_bytes(archive(data, **{"0": bytes(16)}))
        try:
            return safe_load.read(path)
        except UsageError as error:
            raise UsageError(str(error).removeprefix(f"{path}: ")) from error

    read(program(b"N"))  # zipfile imports the codec of file names on its first use
    return read


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def calls(marker):
    """Return {attack: an object whose pickle executes it when Python loads it}."""
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


CALLS = [*calls("x")]


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("function", CALLS)
def test_a_call_is_refused_by_name_and_not_run(tmp_path, function, legacy):
    marker = tmp_path / "marker"
    path = tmp_path / "generator.pth"
    torch.save({"state": calls(marker)[function]}, path, _use_new_zipfile_serialization=not legacy)
    for read in (checkpoints.load_generator, safe_load.read):
        module, name = function.rsplit(".", 1)
        place = rf"_?{module}(\._local)?\.{name}"  # Python 3.13 and 3.14 say io and pathlib so
        with pytest.raises(UsageError, match=f"asks for {place}.*nothing in it was run"):
            read(path)
    assert not marker.exists()
    assert os.listdir(tmp_path) == ["generator.pth"]


def test_a_module_of_the_files_choosing_is_not_imported(load, tmp_path, monkeypatch):
    (tmp_path / "side_effect.py").write_text("raise SystemExit('was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match="asks for side_effect.anything"):
        load(program(name("side_effect.anything"), b")R"))
    assert "side_effect" not in sys.modules


@pytest.mark.parametrize("full", sorted(OBJECT_NAMES | set(STORAGE_BYTES)))
def test_no_allowed_class_can_be_called(load, full):
    for arguments in (b")", b"(" + text("x") + b"t", b"]"):
        with pytest.raises(UsageError, match=f"calls {full} as a function; nothing"):
            load(program(name(full), arguments, b"R"))


INERT = (type(None), bool, int, str, dict, list, tuple, set, torch.device, torch.Tensor, Record)


def loaded_or_refused(load, data):
    """Return a pickle's content, which must be inert data, and its error line."""
    roots, before = [], set(sys.modules)
    complaint = refusal(lambda content: roots.append(load(content)), data)
    assert set(sys.modules) == before
    assert complaint or isinstance(roots[0], INERT)
    assert len(complaint) < 500
    assert not complaint or complaint.isprintable()
    return roots, complaint


@pytest.mark.parametrize("full", sorted(ALL_NAMES))
def test_odd_arguments_are_refused_or_make_data(load, full):
    for arguments in (b")", b"]", b"N", text("x"), b"(" + text("x") + text("y") + b"t",
                      b"(" + b"K\x01" * 6 + b"t", b"(" + name("siren.siren.Sine") + b"t",
                      b"(](" + b"K\x01" * 2 + b"ett"):  # fmt: skip
        for instruction in (b"R", b"\x81"):
            loaded_or_refused(load, program(name(full), arguments, instruction))


@pytest.mark.parametrize("full", sorted(OBJECT_NAMES))
def test_an_object_is_only_a_record_of_its_attributes(load, full):
    attributes = b"}(" + text("__class__") + text("x") + text("__setstate__") + b"K\x01"
    attributes += text("name") + text("x") + text("attributes") + b"N" + b"u"
    record = load(program(name(full), b")\x81", attributes, b"b"))
    assert isinstance(record, Record)
    assert record.name == full
    assert set(record.attributes) == {"__class__", "__setstate__", "name", "attributes"}
    with pytest.raises(UsageError, match="takes no arguments"):
        load(program(name(full), b"(K\x01t\x81"))


def test_attributes_of_a_dict_do_not_hide_its_methods(load):
    """A state dict has its versions as an attribute; a hostile attribute could be `items`."""
    made = name("collections.OrderedDict") + b")R" + text("a") + b"K\x01s"
    made += b"}(" + text("items") + b"K\x05" + text("get") + b"N" + b"ub"
    for root in (made, b"(" + made + b"t"):
        found = load(program(root))
        found = found[0] if isinstance(found, tuple) else found
        assert type(found) is dict
        assert found.get("a") == 1


SINE = name("siren.siren.Sine") + b")\x81"  # an object
WITHIN = "holds siren.siren.Sine where plain numbers"


@pytest.mark.parametrize(
    ("parts", "complaint"),
    [
        ([b"]" + SINE + b"a"], WITHIN), ([b"}" + text("a") + SINE + b"s"], WITHIN),
        ([SINE + b"\x85"], WITHIN),
        ([name("siren.siren.Sine"), b"}b"], "is damaged: it cannot be read"),
        ([SINE, b"(K\x01K\x02tb"], "attributes that have no names"),
        ([b"}]K\x01s"], "neither text nor number"),
        ([b"})K\x01s"], "neither text nor number"),
        ([b"}N", b"K\x01s"], "neither text nor number"),
        ([b"N", b"K\x01a"], "is damaged: it cannot be read"),
        ([b"\x8a\x09", b"\xff" * 8 + b"\x01"], "more than 64 bits"),
        ([b"h\x05"], "is damaged: it cannot be read"),
        ([b"K\x01", b"(R"], "is damaged: it cannot be read"),
        ([name("collections.OrderedDict"), b"(]tR"], "an OrderedDict with arguments"),
        ([b"K\x01Q"], "unknown sort of thing"),
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
        ([b"\x8b\xff\xff\xff\x7f"], "cannot be read"),
    ],
)  # fmt: skip
def test_what_no_checkpoint_needs_is_refused(load, parts, complaint):
    with pytest.raises(UsageError, match=complaint):
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
def test_a_tensor_lies_within_its_storage(load, shape, strides, offset):
    assert load(program(tensor((2, 2), (1, 2)))).shape == (2, 2)
    assert load(program(tensor((1,), (1,), 3))).shape == (1,)
    with pytest.raises(UsageError, match="larger than its 4|malformed|no number"):
        load(program(tensor(shape, strides, offset)))


HUGE = 2**34


def test_a_tensor_is_not_enlarged_by_attributes(load):
    where = b"(" + storage() + number(0) + numbers(HUGE) + numbers(1) + b"t"
    parameter = name("torch._utils._rebuild_parameter") + b"(" + tensor((4,), (1,)) + b"\x89"
    parameter += name("collections.OrderedDict") + b")RtR"
    for made in (tensor((4,), (1,)), parameter):
        assert load(program(made)).shape == (4,)
        with pytest.raises(UsageError, match="sets attributes of an object without any"):
            load(program(made, where, b"b"))


def test_recursion_and_repetition_end(tmp_path):
    path = tmp_path / "x.pth"
    tuples = b")" + b"\x85" * 100_000  # whose hash would take as many calls
    shared = b")" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60))
    deep = b"".join([b"]" * 20_000, b"a" * 19_999])
    itself = b"]q\x00h\x00a"
    doubled = b"]" + b"".join(b"q" + bytes([i]) + b"]h" + bytes([i]) + b"ah" + bytes([i]) + b"a"
                              for i in range(30))  # fmt: skip
    for body in (deep, itself, doubled, b"}" + tuples + b"Ns", b"}" + shared + b"Ns"):
        path.write_bytes(archive(program(body)))
        with pytest.raises(UsageError, match="is damaged"):
            checkpoints.read(path, "generator")


def test_a_pickle_without_end_is_given_up(load, monkeypatch):
    monkeypatch.setattr(pickle_scan, "MAX_INSTRUCTIONS", 1000)
    with pytest.raises(UsageError, match="longer than any checkpoint's"):
        load(program(b"]" * 1001))


def test_a_module_that_holds_itself_is_refused(tmp_path):
    network = published_files.generator()
    network.siren.final_layer.add_module("again", network.siren)
    published_files.save(network, tmp_path / "generator.pth")
    with pytest.raises(UsageError, match="could hold itself"):
        checkpoints.load_generator(tmp_path / "generator.pth")


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
def test_plain_data_comes_back(load, value):
    data = pickle.dumps(value, protocol=2)
    assert repr(load(data)) == repr(value)


def refusal(use, argument):
    """Return a reader's error, "" if it accepts; any other exception fails the test."""
    try:
        use(argument)
    except (UsageError, StateError) as error:
        return str(error)
    return ""


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_random_bytes_are_refused_or_data(load, data):
    for body in (data, program(data)):
        loaded_or_refused(load, body)


OPCODES = [b"}", b"]", b")", b"(", b"t", b"\x85", b"\x86", b"\x87", b"a", b"e", b"s", b"u", b"R",
           b"b", b"\x81", b"Q", b"N", b"\x88", b"\x89", b"K\x01", b"q\x00", b"h\x00", b"q\x01",
           b"h\x01", b".", text("storage"), text("_modules"), number(3), storage(),
           tensor((2, 2), (2, 1)), *map(name, sorted(ALL_NAMES))]  # fmt: skip


@given(st.lists(st.sampled_from(OPCODES), max_size=40))
@settings(max_examples=600)
def test_random_programs_are_refused_or_data(load, parts):
    roots, _ = loaded_or_refused(load, program(*parts))
    for root in roots:
        assert published.describe(root).isprintable()
        for use in (published.generator_of, published.average_of, published.discriminator_of):
            assert "\n" not in refusal(use, root)  # another exception fails the test


def test_a_name_cannot_write_on_the_terminal(load):
    with pytest.raises(UsageError) as caught:
        load(program(b"cos\x1b[2J" + b"x" * 100_000 + b"\nsystem\n"))
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 300
