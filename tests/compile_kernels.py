"""Compile every kernel for a Hopper GPU without one; run as a script by test_triton_compiles.py.

Prints one JSON line per kernel: its name and constants, instructions in all and in its loops,
shared memory and stack in bytes.
"""

import collections
import json
import re
import subprocess
import sys
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from siren.fused import kernels, packing, triton_gradients

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
HALF = {"features_ptr", "features_weight_ptr", "weights_ptr", "sines_ptr", "gradients_ptr",
        "left_ptr", "right_ptr", "narrow_ptr"}  # fmt: skip


def compiled(kernel, width, constants, folder):
    types = {name: "constexpr" if name in constants else "i32" for name in kernel.arg_names}
    for name in kernel.arg_names:
        if name.endswith("_ptr"):
            types[name] = "*fp16" if name in HALF else "*fp32"
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, kind in enumerate(types.values())
        if kind.startswith("*")
    }
    source = ASTSource(kernel, signature=types, constexprs=constants, attrs=aligned)
    options = {**packing.launch(width), "num_stages": 3}
    binary = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    file = folder / "kernel.cubin"
    file.write_bytes(binary.asm["cubin"])
    usage = run("cuobjdump", "-res-usage", file)
    return {
        "kernel": kernel.__name__,
        "width": width,
        "constants": constants,
        "shared": binary.metadata.shared,
        "stack": int(re.search(r"STACK:(\d+)", usage)[1]),
        **counts(run("nvdisasm", "-c", file)),
    }


def run(tool, *arguments):
    done = subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def counts(assembly):
    """Instructions of a kind in all, and inside its loops."""
    labels, instructions = {}, []
    for line in assembly.splitlines():
        if match := re.match(r"(\.L_x_\d+):", line):
            labels[match[1]] = len(instructions)
        elif match := re.match(r"\s+/\*[0-9a-f]+\*/\s+(.*?);", line):
            instructions.append(match[1])
    kinds = [re.sub(r"^@!?U?P\w+ ", "", text).split()[0].split(".")[0] for text in instructions]
    inside = set()
    for index, text in enumerate(instructions):
        match = re.search(r"BRA.*`\((\.L_x_\d+)\)", text)
        if match and labels.get(match[1], index) < index:
            inside |= set(range(labels[match[1]], index))
    return {
        "all": collections.Counter(kinds),
        "loops": collections.Counter(kinds[index] for index in inside),
    }


def variants(width, channels):
    """Every kernel of one field, with all that can be asked of it."""
    piece = min(width, 128)
    field = {"H": width, "WIDTH": piece, "PIECES": width // piece, "CHANNELS": channels,
             "BLOCK": packing.BLOCK, "STAGES": packing.STAGES, "ON_DEVICE": True}  # fmt: skip
    yield kernels.forward_kernel, {**field, "DENSITY_ONLY": False}
    yield kernels.forward_kernel, {**field, "DENSITY_ONLY": True}
    yield kernels.backward_kernel, {**field, "OF_POINTS": False, "OF_DIRECTIONS": False}
    if channels:
        yield kernels.backward_kernel, {**field, "OF_POINTS": True, "OF_DIRECTIONS": True}
    reduction = {"H": width, "TILE": piece, "NARROW": triton_gradients.NARROW, "ON_DEVICE": True,
                 "STEP": triton_gradients.STEP, "STAGES": triton_gradients.STAGES}  # fmt: skip
    for right in {width, channels, 0}:
        yield kernels.reduction_kernel, {**reduction, "RIGHT": right}


def main(folder, *fields):
    for field in fields:
        width, channels = (int(number) for number in field.split("+"))
        for kernel, constants in variants(width, channels):
            print(json.dumps(compiled(kernel, width, constants, Path(folder))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
