"""BOUNDARY: pickles read as data: nothing is imported, called or built that the file chooses.

A pickle is a program for a small stack machine. The machine here knows the opcodes that torch.save
writes (protocol 2) and a fixed list of names. A name is never looked up in Python: it only decides
which inert object of ours, a Record, a Storage or a TensorView, stands where the file has an object
of its own. Everything else is refused by name.

What a file can cost is bounded by its size: texts are slices of it, numbers have 64 bits, keys are
texts or numbers, and there are at most MAX_OPCODES operations.
"""

import pickletools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

import torch

MAX_OPCODES = 500_000  # a whole training state needs about 50,000
MAX_DIMENSIONS = 8
MAX_SHOWN = 80  # characters of a file's text in a message

_CLASSES = {  # by their module
    "torch.nn.modules": (
        "container.ModuleList container.Sequential linear.Linear conv.Conv2d activation.LeakyReLU "
        "activation.Sigmoid"
    ),
    "generators.generators": "ImplicitGenerator3d",
    "siren.siren": (
        "TALLSIREN SPATIALSIRENBASELINE EmbeddingPiGAN128 EmbeddingPiGAN256 FiLMLayer "
        "CustomMappingNetwork UniformBoxWarp Sine"
    ),
    **dict.fromkeys(
        ("discriminators.discriminators", "discriminators.sgdiscriminators"),
        "AdapterBlock AddCoords CoordConv ResidualCoordConvBlock ResidualCCBlock "
        "StridedResidualConvBlock ProgressiveDiscriminator ProgressiveEncoderDiscriminator "
        "StridedDiscriminator CCSDiscriminator CCSEncoderDiscriminator",
    ),
    "torch_ema.ema": "ExponentialMovingAverage",
}
OBJECT_NAMES = frozenset(
    f"{module}.{name}" for module, names in _CLASSES.items() for name in names.split()
)
STORAGE_DTYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.DoubleStorage": torch.float64,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
}


class BadPickleError(ValueError):
    """The pickle is damaged, or asks for what is not on the lists; the text says which."""


@dataclass(frozen=True, slots=True)
class Name:
    """A name of the lists, as the file wrote it; it stands for no object of Python's."""

    full: str


@dataclass(eq=False, slots=True)
class Record:
    """What the file holds of one object: its class's name and its attributes."""

    name: str
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def short_name(self) -> str:
        """The class's name without its module."""
        return self.name.rpartition(".")[2]


@dataclass(eq=False, slots=True)
class Storage:
    """Declared numbers of the file; data are their bytes, once somebody has read them."""

    key: str
    dtype: torch.dtype
    count: int
    data: bytearray | None = None

    @property
    def num_bytes(self) -> int:
        """Declared size."""
        return self.count * self.dtype.itemsize


@dataclass(eq=False, slots=True)
class TensorView:
    """A tensor over a storage, within its declared size; strides and offset in numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def tensor(self) -> torch.Tensor:
        """The tensor, over the bytes that were read."""
        if self.storage.data is None:
            raise ValueError("the storage has not been read")
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=self.storage.dtype)
        flat = torch.frombuffer(self.storage.data, dtype=self.storage.dtype)
        return flat.as_strided(self.shape, self.strides, self.offset)


class Unpickled(NamedTuple):
    """The object of a pickle, and the storages that its tensors lie in, by key."""

    root: Any
    storages: dict[str, Storage]


def load(stream: BinaryIO) -> Unpickled:
    """Read one pickle from stream, which then stands behind it.

    Dicts, lists, tuples, sets, texts and numbers come as such, an OrderedDict as a dict, an object
    as a Record, a tensor or parameter as a TensorView, a torch.device as None.

    Args:
        stream: in memory, so that a declared length allocates no more than there is.

    Raises:
        BadPickleError: the pickle is damaged or asks for something that is not on the lists.
    """
    machine = _Machine()
    try:
        with warnings.catch_warnings():  # pickletools decodes texts even of opcodes refused below
            warnings.simplefilter("ignore", DeprecationWarning)
            root = machine.run(stream)
    except BadPickleError:
        raise
    except ValueError as error:  # of pickletools, on bytes that are no pickle
        raise BadPickleError("is damaged: its pickle cannot be read") from error
    return Unpickled(root, machine.storages)


def shown(text: object) -> str:
    """A file's own text for a message: no control characters, not long."""
    plain = ascii(text[: 2 * MAX_SHOWN] if isinstance(text, str) else text)[1:-1]
    return plain if len(plain) <= MAX_SHOWN else plain[:MAX_SHOWN] + "..."


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise BadPickleError(f"is damaged: {what}")


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_counts(value: object) -> bool:
    return isinstance(value, tuple) and all(_is_count(item) for item in value)


CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
MAX_INT_BITS = 63


class _Machine:
    """The stack machine; each method carries out one opcode or a family of them."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []  # heights of the stack
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self.steps: dict[str, Callable[[Any], None]] = {
            "EMPTY_DICT": lambda _: self.stack.append({}),
            "EMPTY_LIST": lambda _: self.stack.append([]),
            "MARK": lambda _: self.marks.append(len(self.stack)),
            "TUPLE": lambda _: self.stack.append(tuple(self._pop_to_mark())),
            "APPEND": lambda _: self._extend([self._pop()]),
            "APPENDS": lambda _: self._extend(self._pop_to_mark()),
            "SETITEM": lambda _: self._update(self._pop_many(2)),
            "SETITEMS": lambda _: self._update(self._pop_to_mark()),
            "GLOBAL": self._name,
            "NEWOBJ": self._new_object,
            "BUILD": self._build,
            "REDUCE": self._reduce,
            "BINPERSID": self._persistent,
            **dict.fromkeys(("BINPUT", "LONG_BINPUT"), self._put),
            **dict.fromkeys(("BINGET", "LONG_BINGET"), self._get),
            "PROTO": lambda version: _require(version == 2, "it is of another pickle protocol"),
        }

    def run(self, stream: BinaryIO) -> Any:
        """The object that the program leaves on the stack."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            _require(count < MAX_OPCODES, "its pickle is longer than any checkpoint's")
            name = opcode.name
            if name in self.steps:
                self.steps[name](argument)
            elif name in CONSTANTS:
                self.stack.append(CONSTANTS[name])
            elif name in LITERALS:
                is_long = type(argument) is int and argument.bit_length() > MAX_INT_BITS
                _require(not is_long, "it holds a number of more than 64 bits")
                self.stack.append(argument)
            elif name in TUPLES:
                self.stack.append(tuple(self._pop_many(TUPLES[name])))
            elif name == "STOP":
                return self._pop()
            else:
                raise BadPickleError(
                    f"uses the pickle opcode {name}, which no checkpoint needs; nothing in it was "
                    "run"
                )
        raise BadPickleError("is damaged: its pickle has no end")

    def _pop(self) -> Any:
        return self._pop_many(1)[0]

    def _pop_many(self, count: int) -> list[Any]:
        floor = self.marks[-1] if self.marks else 0
        _require(len(self.stack) - floor >= count, "its pickle takes from an empty stack")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def _pop_to_mark(self) -> list[Any]:
        _require(bool(self.marks), "its pickle has no mark")
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _top(self) -> Any:
        _require(bool(self.stack), "its pickle takes from an empty stack")
        return self.stack[-1]

    def _extend(self, items: list[Any]) -> None:
        target = self._top()
        _require(isinstance(target, list), "it appends to what is no list")
        target.extend(items)

    def _update(self, items: list[Any]) -> None:
        target = self._top()
        _require(isinstance(target, dict), "it sets items of what is no dict")
        _require(len(items) % 2 == 0, "it sets a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            _require(isinstance(key, (str, int)), "a key is neither text nor number")
            target[key] = value

    def _put(self, index: int) -> None:
        self.memo[index] = self._top()

    def _get(self, index: int) -> None:
        _require(index in self.memo, "its pickle recalls what it never stored")
        self.stack.append(self.memo[index])

    def _name(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        full = f"{module}.{name}"
        if full not in OBJECT_NAMES and full not in STORAGE_DTYPES and full not in BUILDERS:
            raise BadPickleError(
                f"asks for {shown(full)}, which is not among the names that a checkpoint may use; "
                "nothing in it was run"
            )
        self.stack.append(Name(full))

    def _new_object(self, _: None) -> None:
        kind, arguments = self._pop_many(2)
        is_object = isinstance(kind, Name) and kind.full in OBJECT_NAMES
        _require(is_object, "it makes an object of what is no class")
        _require(_is_counts(arguments) and not arguments, f"it makes {kind.full} with arguments")
        self.stack.append(Record(kind.full))

    def _build(self, _: None) -> None:
        """Set attributes; those of an OrderedDict (a state dict's version numbers) are left out."""
        state = self._pop()
        target = self._top()
        is_state = isinstance(state, dict) and all(isinstance(key, str) for key in state)
        _require(is_state, "it sets attributes that have no names")
        if isinstance(target, Record):
            target.attributes.update(state)
        else:
            _require(isinstance(target, dict), "it sets attributes of what has none")

    def _reduce(self, _: None) -> None:
        function, arguments = self._pop_many(2)
        is_builder = isinstance(function, Name) and function.full in BUILDERS
        if not is_builder:
            called = function.full if isinstance(function, Name) else "what is no name"
            raise BadPickleError(f"calls {called} as a function; nothing in it was run")
        _require(isinstance(arguments, tuple), f"it calls {function.full} without a tuple")
        self.stack.append(BUILDERS[function.full](arguments))

    def _persistent(self, _: None) -> None:
        """A storage; before PyTorch 1.6 also a class with its source, which is not looked at."""
        what = self._pop()
        is_known = isinstance(what, tuple) and len(what) in (4, 5, 6)
        _require(is_known and isinstance(what[0], str), "it refers to an unknown sort of thing")
        if what[0] == "module" and len(what) == 4 and isinstance(what[1], Name):
            self.stack.append(what[1])
            return
        _require(what[0] == "storage" and len(what) >= 5, "it refers to an unknown sort of thing")
        _require(len(what) == 5 or what[5] is None, "a storage is part of another")
        _, kind, key, _, count = what[:5]
        is_kind = isinstance(kind, Name) and kind.full in STORAGE_DTYPES
        _require(is_kind and isinstance(key, str) and _is_count(count), "a storage is malformed")
        new = Storage(key, STORAGE_DTYPES[kind.full], count)
        known = self.storages.setdefault(key, new)
        is_same = (known.dtype, known.count) == (new.dtype, new.count)
        _require(is_same, "a storage has two sizes or types")
        self.stack.append(known)


def _ordered_dict(arguments: Sequence[Any]) -> dict[Any, Any]:
    _require(not arguments, "it makes an OrderedDict with arguments")
    return {}


def _set(arguments: Sequence[Any]) -> set[str]:
    items = arguments[0] if len(arguments) == 1 else None
    is_texts = isinstance(items, list) and all(isinstance(item, str) for item in items)
    _require(is_texts, "it makes a set of other things than texts")
    return set(items or [])


def _device(arguments: Sequence[Any]) -> None:
    """Where a network once was does not matter."""
    is_device = 1 <= len(arguments) <= 2 and isinstance(arguments[0], str)
    _require(
        is_device and all(_is_count(index) for index in arguments[1:]), "a device is malformed"
    )


def _tensor(arguments: Sequence[Any]) -> TensorView:
    _require(6 <= len(arguments) <= 7, "a tensor is malformed")
    storage, offset, shape, strides = arguments[:4]
    _require(isinstance(storage, Storage) and _is_count(offset), "a tensor has no storage")
    _require(_is_counts(shape) and _is_counts(strides), "a tensor's shape is malformed")
    _require(len(shape) == len(strides) <= MAX_DIMENSIONS, "a tensor's shape is malformed")
    size, last = 1, offset
    for length, stride in zip(shape, strides, strict=True):
        size *= length
        last += (length - 1) * stride
    # No tensor is larger than its storage: a stride of 0 would make a little file a huge tensor.
    fits = size <= storage.count and (last < storage.count or shape == (0,))
    _require(fits, f"a tensor of shape {list(shape)} is larger than its {storage.count} numbers")
    return TensorView(storage, offset, shape, strides)


def _parameter(arguments: Sequence[Any]) -> TensorView:
    is_tensor = len(arguments) == 3 and isinstance(arguments[0], TensorView)
    _require(is_tensor, "a parameter is malformed")
    view: TensorView = arguments[0]
    return view


BUILDERS: dict[str, Callable[[Sequence[Any]], Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "__builtin__.set": _set,  # what protocol 2 calls builtins.set
    "builtins.set": _set,
    "torch.device": _device,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
}
