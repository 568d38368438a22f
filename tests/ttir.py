"""Run Triton's intermediate representation (TTIR) of a kernel in NumPy.

TTIR is what the compiler made of the Python source. Triton's own interpreter never sees it: it runs
the source itself, and so cannot notice a kernel that the compiler has understood wrongly. Only the
operations that our kernels use are known here; any other one is an error, and so is a load or store
outside of its array.
"""

import itertools
import re

import numpy as np

OFFSET_BITS = 40  # a pointer is an array's number, shifted by this, plus the index of an element
TYPES = {"f16": np.float16, "f32": np.float32, "i1": np.bool_, "i8": np.int8, "i32": np.int32,
         "i64": np.int64}  # fmt: skip
BINARY = {
    "addf": np.add, "subf": np.subtract, "mulf": np.multiply, "divf": np.divide, "addi": np.add,
    "subi": np.subtract, "muli": np.multiply, "divsi": np.floor_divide, "remsi": np.remainder,
    "divui": np.floor_divide,
    "minsi": np.minimum, "maxsi": np.maximum, "andi": np.bitwise_and, "ori": np.bitwise_or,
    "minnumf": np.fmin, "maxnumf": np.fmax,
}  # fmt: skip
COMPARISONS = {"olt": np.less, "ole": np.less_equal, "ogt": np.greater, "oge": np.greater_equal,
               "oeq": np.equal, "une": np.not_equal, "slt": np.less, "sle": np.less_equal,
               "sgt": np.greater, "sge": np.greater_equal,
               "eq": np.equal, "ne": np.not_equal}  # fmt: skip
CASTS = {"extsi", "extui", "extf", "truncf", "trunci", "sitofp"}
IGNORED = {"gpu.barrier", "ttg.barrier", "ttg.local_barrier"}  # each operation is whole here


def parse(text):
    """Return the argument names and the operations of the only function in a TTIR module."""
    lines = [line.split(" loc(")[0].strip() for line in text.splitlines()]
    start = next(i for i, line in enumerate(lines) if line.startswith("tt.func"))
    operations, _ = _block(lines, start + 1)
    return re.findall(r"(%[\w-]+): [!\w]", lines[start]), operations


def _block(lines, at):
    """Return operations up to a closing brace, and its line.

    An operation is (results, name, rest, region, the region after else).
    """
    operations = []
    while not lines[at].startswith("}"):
        if lines[at].startswith("^"):  # the arguments of a region
            at += 1
            continue
        assigned, name, rest = re.match(r'(?:(%.*?) = )?"?([\w.]+)"?(.*)', lines[at]).groups()
        region, otherwise = [], []
        if rest.endswith("{"):
            region, at = _block(lines, at + 1)
            if lines[at] == "} else {":
                otherwise, at = _block(lines, at + 1)
            rest += lines[at]
        results = []
        for result in assigned.split(", ") if assigned else ():
            base, _, count = result.partition(":")
            results += [f"{base}#{i}" for i in range(int(count))] if count else [base]
        operations.append((results, name, rest, region, otherwise))
        at += 1
    return operations, at


def _type(text):
    """Return the shape and NumPy type at the end of an operation's text."""
    found = re.search(r"(?:tensor<([\dx]+)x(!?[\w.]+(?:<\w+>)?)>|(!?[\w.]+(?:<\w+>)?))$", text)
    shape = tuple(int(n) for n in found[1].split("x")) if found[1] else ()
    name = found[2] or found[3]
    return shape, np.int64 if name.startswith("!tt.ptr") else TYPES[name]


class Program:
    """One program of a grid; its arrays are changed in place."""

    def __init__(self, arrays, grid, program_id):
        self.arrays, self.grid, self.program_id = arrays, grid, program_id
        self.values = {}

    def run(self, operations):
        """Run operations; return the values that the block yields."""
        for results, name, rest, region, otherwise in operations:
            operands = re.findall(r"%[\w-]+(?:#\d+)?", rest)
            if name in {"scf.yield", "tt.return"}:
                return [self.values[operand] for operand in operands]
            if name == "scf.for":
                found = self._loop(rest, region)
            elif name == "scf.if":
                found = self.run(region if self.values[operands[0]] else otherwise)
            elif name in IGNORED:
                continue
            else:
                values = [self.values[operand] for operand in operands]
                found = [self._evaluate(name, rest, values, region)]
            self.values.update(zip(results, found, strict=False))
        return []

    def _loop(self, text, region):
        index, *bounds = re.findall(r"%[\w-]+", text)[:4]  # of "i = begin to end step step"
        begin, end, step = (self.values[bound] for bound in bounds)
        carried = re.findall(r"(%[\w-]+) = (%[\w-]+(?:#\d+)?)", text.partition("iter_args(")[2])
        values = [self.values[initial] for _, initial in carried]
        for i in range(begin, end, step):
            self.values[index] = np.int32(i)
            self.values.update(zip((name for name, _ in carried), values, strict=True))
            values = self.run(region)
        return values

    def _evaluate(self, name, text, values, region):
        dialect, _, kind = name.partition(".")
        if dialect == "arith" and kind in BINARY:
            return BINARY[kind](*values)
        if dialect == "arith" and kind in CASTS:
            return values[0].astype(_type(text)[1])
        method = getattr(self, f"_{dialect}_{kind}", None)
        if method is None:
            raise NotImplementedError(f"the operation {name}{text} is not known here")
        return method(text, values, region)

    def _arith_constant(self, text, values, region):
        shape, dtype = _type(text)
        value = re.match(r" (?:dense<)?([^>\s]+)", text)[1]
        return np.full(shape, {"true": 1, "false": 0}.get(value) or float(value), dtype)[()]

    def _arith_cmpi(self, text, values, region):
        return COMPARISONS[re.match(r" (\w+),", text)[1]](*values)

    def _arith_select(self, text, values, region):
        return np.where(*values)

    def _arith_negf(self, text, values, region):
        return -values[0]

    _arith_cmpf = _arith_cmpi

    def _math_absf(self, text, values, region):
        return np.abs(values[0])

    def _math_log(self, text, values, region):
        return np.log(values[0])

    def _math_exp(self, text, values, region):
        return np.exp(values[0])

    def _math_sqrt(self, text, values, region):
        return np.sqrt(values[0])

    def _tt_get_program_id(self, text, values, region):
        return np.int32(self.program_id["xyz".index(text[1])])

    def _tt_get_num_programs(self, text, values, region):
        return np.int32(self.grid["xyz".index(text[1])])

    def _tt_make_range(self, text, values, region):
        end, start = (int(re.search(rf"{key} = (\d+)", text)[1]) for key in ("end", "start"))
        return np.arange(start, end, dtype=np.int32)

    def _tt_splat(self, text, values, region):
        return np.broadcast_to(values[0], _type(text)[0])

    _tt_broadcast = _tt_splat

    def _tt_expand_dims(self, text, values, region):
        return np.expand_dims(values[0], int(re.search(r"axis = (\d+)", text)[1]))

    def _tt_trans(self, text, values, region):
        return values[0].T

    def _tt_addptr(self, text, values, region):
        return values[0] + values[1].astype(np.int64)

    def _tt_dot(self, text, values, region):
        a, b, total = values
        return a.astype(np.float32) @ b.astype(np.float32) + total

    def _tt_reduce(self, text, values, region):
        combine, end = (operation[1] for operation in region)
        assert end == "tt.reduce.return"
        reduce = {"arith.addf": np.sum, "arith.maxnumf": np.max}[combine]
        return reduce(values[0], int(re.search(r"axis = (\d+)", text)[1]))

    def _tt_elementwise_inline_asm(self, text, values, region):
        function = re.match(r' "(sin|cos)\.approx\.ftz\.f32 \$0, \$1;"', text)[1]
        return getattr(np, function)(values[0])

    def _elements(self, pointers, mask):
        """Return the array that unmasked pointers point into, and their indices."""
        chosen = pointers[mask]
        numbers = np.unique(chosen >> OFFSET_BITS)
        assert len(numbers) == 1, "one access touches several arrays"
        array, index = self.arrays[numbers[0]], chosen & ((1 << OFFSET_BITS) - 1)
        assert index.max() < len(array), "an access lies outside of its array"
        return array, index

    def _tt_load(self, text, values, region):
        pointers = np.asarray(values[0])
        mask = np.broadcast_to(values[1] if len(values) > 1 else True, pointers.shape)
        result = np.array(np.broadcast_to(values[2] if len(values) > 2 else 0, pointers.shape))
        if mask.any():
            array, index = self._elements(pointers, mask)
            assert array.dtype == TYPES[re.search(r"!tt\.ptr<(\w+)>", text)[1]]
            result = result.astype(array.dtype)
            result[mask] = array[index]
        return result[()]

    def _tt_store(self, text, values, region):
        pointers = np.asarray(values[0])
        mask = np.broadcast_to(values[2] if len(values) > 2 else True, pointers.shape)
        if mask.any():
            array, index = self._elements(pointers, mask)
            assert array.dtype == np.asarray(values[1]).dtype
            array[index] = np.broadcast_to(values[1], pointers.shape)[mask]


def launch(text, grid, arguments):
    """Run a kernel's TTIR on a grid; arguments are flat arrays and integers."""
    names, operations = parse(text)
    arrays = [argument for argument in arguments if isinstance(argument, np.ndarray)]
    numbers = itertools.count()
    values = [
        np.int64(next(numbers) << OFFSET_BITS) if isinstance(argument, np.ndarray)
        else np.float32(argument) if isinstance(argument, float) else np.int32(argument)
        for argument in arguments
    ]  # fmt: skip
    grid = (*grid, 1, 1)[:3]
    for program_id in itertools.product(*(range(size) for size in grid)):
        program = Program(arrays, grid, program_id)
        program.values.update(zip(names, values, strict=True))
        program.run(operations)
