"""Compile kernels without a GPU, in a process where Triton does not interpret them.

As a script: reads one request (JSON) a line and prints one answer (JSON) a line. A request names
the kernel, its constants, the compute capability, the number of warps, the type of operands ("fp16"
or "bf16"; none is the first), and whether the answer is the intermediate representation ("ttir") or
figures of the machine code. As a module: Compiler starts the script and asks it.
"""

import collections
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
OPERANDS = {"features_ptr", "features_weight_ptr", "weights_ptr", "sines_ptr", "gradients_ptr",
            "left_ptr", "right_ptr", "narrow_ptr", "feature_rows_ptr", "beside_ptr",
            "logits_ptr", "x_ptr", "constant_ptr", "shortcut_ptr", "of_x_ptr",
            "of_shortcut_ptr"}  # fmt: skip
INTEGERS = {"counts_ptr": "*i32", "number_ptr": "*i32", "needed_ptr": "*i32", "order_ptr": "*i64",
            "known_ptr": "*i8", "signs_ptr": "*i8"}  # fmt: skip
FLOATS = {"noise_scale", "smallest", "clear_start", "clear_slope"}


class Compiler:
    """Runs this script as a process that answers requests."""

    def __init__(self, cache):
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "TRITON_CACHE_DIR": str(cache), "PYTHONPATH": path}
        environment.pop("TRITON_INTERPRET", None)
        self.process = subprocess.Popen(
            [sys.executable, __file__], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def __call__(self, **request):
        """Return the answer to a request."""
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"the compiler stopped at {request}"
        return json.loads(answer)

    def close(self):
        """End the process."""
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def source_of(kernel, constants, operand):
    """Return Triton's source of a kernel with its constants; pointers are aligned as PyTorch's."""
    from triton.compiler import ASTSource

    types = {name: "fp32" if name in FLOATS else "i32" for name in kernel.arg_names}
    types |= dict.fromkeys(constants, "constexpr")
    rounded = set(OPERANDS)
    if kernel.fn.__module__.endswith("layer_kernels"):
        rounded |= {"out_ptr", "gradient_ptr"}
    for name in kernel.arg_names:
        if name.endswith("_ptr"):
            types[name] = INTEGERS.get(name, f"*{operand}" if name in rounded else "*fp32")
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, kind in enumerate(types.values())
        if kind.startswith("*")
    }
    return ASTSource(kernel, signature=types, constexprs=constants, attrs=aligned)


def ttir(source, target, options):
    """Return the intermediate representation (TTIR) after the compiler's first passes."""
    from triton._C.libtriton import ir
    from triton.compiler.compiler import make_backend

    backend = make_backend(target)
    parsed = backend.parse_options(options)
    stages: dict = {}
    backend.add_stages(stages, parsed, source.language)
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    functions = backend.get_codegen_implementation(parsed)
    module = source.make_ir(target, parsed, functions, backend.get_module_map(), context)
    return stages["ttir"](module, {}).str_nodebug()


def machine_code(source, target, options):
    """Count bytes of shared memory and stack, and instructions by kind, in all and in loops."""
    import triton

    binary = triton.compile(source, target=target, options={**options, "num_stages": 3})
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(binary.asm["cubin"])
        usage, assembly = run("cuobjdump", "-res-usage", file), run("nvdisasm", "-c", file)
    return {
        "shared": binary.metadata.shared,
        "stack": int(re.search(r"STACK:(\d+)", usage)[1]),
        **counts(assembly),
    }


def run(tool, *arguments):
    """Return the output of a tool that Triton includes."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    done = subprocess.run([tools / tool, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def counts(assembly):
    """Count the instructions of a kind in all and inside loops."""
    labels, instructions = {}, []
    for line in assembly.splitlines():
        if match := re.match(r"(\.L_x_\d+):", line):
            labels[match[1]] = len(instructions)
        elif match := re.match(r"\s+/\*[0-9a-f]+\*/\s+(.*?);", line):
            instructions.append(match[1])
    kinds = [re.sub(r"^@!?U?P\w+ ", "", text).split()[0].split(".")[0] for text in instructions]
    inside = inside_loops(instructions, labels)
    return {
        "all": collections.Counter(kinds),
        "loops": collections.Counter(kinds[index] for index in inside),
    }


def inside_loops(instructions, labels):
    """Return the indices of instructions inside loops: a jump can lead back to them."""
    before, after = (collections.defaultdict(set) for _ in range(2))
    jumps = []
    for index, text in enumerate(instructions):
        is_end = re.match(r"EXIT|BRA(\.\w+)* `", text)  # without a condition before or behind it
        following = set() if is_end else {index + 1}
        if match := re.search(r"BRA.*`\((\.L_x_\d+)\)", text):
            jumps.append((index, labels[match[1]]))
            following.add(labels[match[1]])
        after[index] = following
        for other in following:
            before[other].add(index)
    inside = set()
    for end, start in jumps:
        if start < end:
            inside |= reached(start, after) & reached(end, before)
    return inside


def reached(start, edges):
    """Return all nodes that edges reach from start."""
    found, waiting = set(), [start]
    while waiting:
        index = waiting.pop()
        if index not in found:
            found.add(index)
            waiting += edges[index]
    return found


def main():
    """Answer requests until there are no more."""
    from triton.backends.compiler import GPUTarget

    from generators import ray_kernels
    from siren.fused import kernels, row_kernels
    from training import layer_kernels

    modules = (kernels, row_kernels, ray_kernels, layer_kernels)
    found = {name: value for module in modules for name, value in vars(module).items()}
    for line in sys.stdin:
        request = json.loads(line)
        operand = request.get("operand", "fp16")
        source = source_of(found[request["kernel"]], request["constants"], operand)
        target = GPUTarget("cuda", request["capability"], 32)
        options = {"num_warps": request["num_warps"], "enable_fp_fusion": True}
        answer = {"ttir": ttir, "machine code": machine_code}[request["output"]]
        print(json.dumps(answer(source, target, options)), flush=True)


if __name__ == "__main__":
    main()
