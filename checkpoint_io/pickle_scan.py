"""Check the pickle of a .pth file, which is a program, without executing any of it.

A checkpoint needs some 30 instructions of pickle's and some 45 names; all others are refused. So is
a program whose result would be far larger than itself, or would contain itself.
"""

import math
import pickletools
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

MAX_INSTRUCTIONS = 500_000  # a whole training state has 15,000
MAX_PARTS = 2**20  # values, each counted again for every one that contains it; a state has 2**16
MAX_DIMENSIONS = 8
MAX_SHOWN = 80  # characters of a file's text in a message

CHANGES = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD"}  # of the value below on the stack
INSTRUCTIONS = CHANGES | set(
    "PROTO STOP MARK GLOBAL NEWOBJ REDUCE BINPERSID BINPUT LONG_BINPUT BINGET LONG_BINGET NONE "
    "NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE EMPTY_TUPLE EMPTY_LIST "
    "EMPTY_DICT TUPLE TUPLE1 TUPLE2 TUPLE3".split()
)
_DISCRIMINATORS = (
    "AdapterBlock AddCoords CoordConv ResidualCoordConvBlock ResidualCCBlock CCSDiscriminator "
    "StridedResidualConvBlock StridedDiscriminator CCSEncoderDiscriminator "
    "ProgressiveDiscriminator ProgressiveEncoderDiscriminator"
)
_CLASSES = {  # by their module
    "torch.nn.modules": "container.ModuleList container.Sequential linear.Linear conv.Conv2d "
    "activation.LeakyReLU activation.Sigmoid",
    "siren.siren": "TALLSIREN SPATIALSIRENBASELINE EmbeddingPiGAN128 EmbeddingPiGAN256 FiLMLayer "
    "CustomMappingNetwork UniformBoxWarp Sine",
    "generators.generators": "ImplicitGenerator3d",
    "discriminators.discriminators": _DISCRIMINATORS,
    "discriminators.sgdiscriminators": _DISCRIMINATORS,
    "torch_ema.ema": "ExponentialMovingAverage",
}
OBJECT_NAMES = frozenset(
    f"{module}.{name}" for module, names in _CLASSES.items() for name in names.split()
)
STORAGE_BYTES = {  # of one number
    **{"torch.FloatStorage": 4, "torch.IntStorage": 4, "torch.HalfStorage": 2},
    **{"torch.DoubleStorage": 8, "torch.LongStorage": 8, "torch.BFloat16Storage": 2},
}
ORDERED_DICT, TENSOR = "collections.OrderedDict", "torch._utils._rebuild_tensor_v2"
FUNCTIONS = frozenset({
    *(ORDERED_DICT, TENSOR, "torch._utils._rebuild_parameter", "torch.device"),
    *("builtins.set", "__builtin__.set"),  # protocol 2 has the second name
})  # fmt: skip
ALL_NAMES = OBJECT_NAMES | FUNCTIONS | set(STORAGE_BYTES)


class BadFileError(ValueError):
    """The file is damaged or uses names that are not allowed; the text says which."""


def shown(text: object) -> str:
    """Return a file's own text for a message: no control characters, not long."""
    plain = ascii(text[: 2 * MAX_SHOWN] if isinstance(text, str) else text)[1:-1]
    return plain if len(plain) <= MAX_SHOWN else plain[:MAX_SHOWN] + "..."


def require(condition: bool, what: str) -> None:
    """Raise BadFileError unless condition holds."""
    if not condition:
        raise BadFileError(f"is damaged: {what}")


class _Name(str):
    """An allowed name, as opposed to other text of the file."""


class _Storage(NamedTuple):
    """A storage of so many numbers."""

    size: int


def _is_among(content: Any, names: Collection[str]) -> bool:
    return isinstance(content, _Name) and content in names


@dataclass(eq=False, slots=True)
class _Value:
    """A value on the stack of a pickle, with the properties that the check needs.

    content: of a text, number, name or storage, or of a tuple of those; parts: values within,
    repeated ones counted each time; is_fixed: it was used a second time.
    """

    content: Any = None
    parts: int = 1
    is_fixed: bool = False


class Scan:
    """Checks a pickle instruction by instruction; executes none."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._stack: list[_Value] = []
        self._below: list[list[_Value]] = []  # the part of the stack below each mark
        self._memo: dict[int, _Value] = {}
        self._parts = 0
        self._storages: dict[str, int] = {}  # declared bytes by key

    def run(self, stream: BinaryIO) -> dict[str, int]:
        """Check the pickle that begins here; return the declared bytes of its storages by key."""
        with warnings.catch_warnings():  # pickletools decodes texts even of refused instructions
            warnings.simplefilter("ignore", DeprecationWarning)
            for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
                require(count < MAX_INSTRUCTIONS, "its pickle is longer than any checkpoint's")
                if opcode.name not in INSTRUCTIONS:
                    raise BadFileError(f"uses the pickle opcode {opcode.name}, which no checkpoint "
                                       "needs; nothing in it was run")  # fmt: skip
                self._step(opcode, argument)
        return self._storages

    def _step(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        if opcode.name == "PROTO":
            require(argument == 2, "it is of another pickle protocol")
        elif opcode.name == "MARK":
            self._below.append(self._stack)
            self._stack = []
        elif opcode.name.endswith("BINPUT"):
            self._memo[argument] = self._stack[-1]
        elif opcode.name.endswith("BINGET"):
            self._memo[argument].is_fixed = True
            self._stack.append(self._memo[argument])
        elif opcode.stack_before:
            self._combine(opcode)
        else:
            self._stack.append(_Value(self._checked(opcode.name, argument)))

    def _checked(self, name: str, argument: Any) -> Any:
        """Return the text, number or name that an instruction puts on the stack."""
        if isinstance(argument, int):
            require(argument.bit_length() < 64, "it holds a number of more than 64 bits")
        if name == "BINUNICODE":
            self.texts.append(argument)
        if name != "GLOBAL":
            return () if name == "EMPTY_TUPLE" else argument
        full = argument.replace(" ", ".", 1)
        if full not in ALL_NAMES:
            raise BadFileError(f"asks for {shown(full)}, which is not among the names that a "
                               "checkpoint may use; nothing in it was run")  # fmt: skip
        return _Name(full)

    def _combine(self, opcode: pickletools.OpcodeInfo) -> None:
        """Replace values on top of the stack by the one that they make or change."""
        name, parts, count = opcode.name, [], len(opcode.stack_before)
        if pickletools.markobject in opcode.stack_before:
            parts, self._stack, count = self._stack, self._below.pop(), count - 2
        parts = [self._stack.pop() for _ in range(count)][::-1] + parts
        made = parts.pop(0) if name in CHANGES else _Value(self._content(name, parts))
        if name in CHANGES:
            require(not made.is_fixed, "a value in it could hold itself")  # changed after use
        if name == "BUILD":  # tensors take attributes too, and could be enlarged by them
            is_known = _is_among(made.content, OBJECT_NAMES | {ORDERED_DICT})
            require(is_known, "it sets attributes of an object without any")
        if name.startswith("SETITEM"):
            is_plain = all(type(key.content) in (str, int) for key in parts[::2])
            require(is_plain, "a key is neither text nor number")
        size = sum(part.parts for part in parts)
        made.parts += size
        self._parts += size
        require(self._parts <= MAX_PARTS, "it is nested or repeats itself without end")
        self._stack.append(made)

    def _content(self, name: str, parts: list[_Value]) -> Any:
        """Return a tuple's items, or the name of the callable that makes an object."""
        if name.startswith("TUPLE"):
            return tuple(part.content for part in parts)
        if name == "BINPERSID":
            return self._storage(parts[0].content)
        function = parts[0].content
        if name == "REDUCE" and not _is_among(function, FUNCTIONS):
            raise BadFileError(f"calls {shown(str(function))} as a function; nothing in it was run")
        if name == "REDUCE" and function == TENSOR:
            _check_tensor(*parts[1].content[:4])
        if name == "REDUCE" and function == ORDERED_DICT:  # they could be keys of any kind
            require(parts[1].parts == 1, "it makes an OrderedDict with arguments")
        return function

    def _storage(self, what: Any) -> _Storage:
        """Return the storage that a persistent id names, once it has been noted."""
        is_known = isinstance(what, tuple) and len(what) >= 4
        if is_known and what[0] == "module":
            raise BadFileError("holds whole objects as PyTorch before 1.6 wrote them, which is not "
                               "read; load it there and save it with 1.6 or newer")  # fmt: skip
        require(is_known and what[0] == "storage" and what[5:] in ((), (None,)),
                 "it refers to an unknown sort of thing")  # fmt: skip
        _, kind, key, _, count = what[:5]
        is_whole = isinstance(key, str) and _is_among(kind, STORAGE_BYTES)
        require(is_whole and type(count) is int and count >= 0, "a storage is malformed")
        size = count * STORAGE_BYTES[kind]
        require(self._storages.setdefault(key, size) == size, "a storage has two sizes or types")
        return _Storage(count)


def _check_tensor(storage: Any, offset: int, shape: tuple[int, ...], by: tuple[int, ...]) -> None:
    """Refuse a tensor beyond its storage, or one that a stride (by) of 0 makes huge."""
    require(isinstance(storage, _Storage), "a tensor has no storage")
    require(len(shape) == len(by) <= MAX_DIMENSIONS, "a tensor's shape is malformed")
    require(all(type(n) is int and n >= 0 for n in (offset, *shape, *by)), "a size is no number")
    last = offset + sum((length - 1) * stride for length, stride in zip(shape, by, strict=True))
    fits = math.prod(shape) <= storage.size and (last < storage.size or shape == (0,))
    require(fits, f"a tensor of shape {list(shape)} is larger than its {storage.size} numbers")
