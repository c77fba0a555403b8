#!/usr/bin/env python3
"""Registers, stack and code of the CUDA kernels in a library.

  scripts/kernel_report.py LIBRARY                 prints bytes of code by kernel and by axis
  scripts/kernel_report.py LIBRARY --write TABLE   writes registers and stack of each kernel
  scripts/kernel_report.py LIBRARY --check TABLE   fails where one of them is larger than in TABLE

The library holds code for one architecture (-DCMAKE_CUDA_ARCHITECTURES=90-real). cuobjdump of the
CUDA toolkit is found on the PATH or named by CUOBJDUMP; PyPI has it as nvidia-cuda-cuobjdump.
"""

import argparse
import collections
import os
import pathlib
import re
import subprocess
import sys
import tempfile

CUOBJDUMP = os.environ.get("CUOBJDUMP", "cuobjdump")
# Enumerators of Variant (src/cuda/launch_params.hpp) and CompiledActivation, by number.
VARIANTS = ("base", "circular", "shift full state", "gated", "extended", "groups")
ACTIVATIONS = ("none", "silu", "runtime")
TYPES = {"__half": "f16", "__nv_bfloat16": "bf16", "float": "f32"}
TRAITS = re.compile(
    r"KernelTraits<(\w+), (\w+), (\w+), (\d+), [^)]*\)(\d+), [^)]*\)(\d+)>(?:, \(?(?:int\))?(\d+))?")

SHAPE = re.compile(r"BackwardShape<(\w+), (\d+), [^)]*\)(\d+), (\w+), (\w+),")


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def demangled(names):
    result = subprocess.run(["c++filt"], input="\n".join(names), check=True, capture_output=True,
                            text=True)
    return dict(zip(names, result.stdout.splitlines()))


def group_of(function):
    """Of the gradients of a group."""
    found = re.search(r"BackwardGroupShape<.*, (true|false)>", function)
    return "" if not found else ", normalized group" if found.group(1) == "true" else ", group"


def tree_of(function):
    """Of the general kernel for verify."""
    return ", trees" if re.search(r"verify_general<.*(\)1|true)>", function) else ""


def axes(function):
    """What a kernel's demangled name says, as a dict."""
    name = re.search(r"shortconv::cuda::(\w+)", function).group(1)
    found = TRAITS.search(function)
    if found:
        x, weight, state, width, activation, variant, group = found.groups()
        return {"kernel": name + (f" x{group}" if group else ""), "x": TYPES[x],
                "weights": TYPES[weight], "width": width,
                "variant": VARIANTS[int(variant)] + (", f32 states" if state != x else ""),
                "activation": ACTIVATIONS[int(activation)]}
    found = SHAPE.search(function)
    if found:
        x, width, activation, has_bias, has_epilogue = found.groups()
        return {"kernel": name, "x": TYPES[x], "weights": "any", "width": width,
                "variant": "any strides" if "ChannelStrip" in function
                else ("epilogue" if has_epilogue == "true"
                      else "base" if has_bias == "true" else "no bias")
                + (", segments" if "SegmentStrip" in function else "")
                + group_of(function),
                "activation": ACTIVATIONS[int(activation)]}
    general = re.search(r"RuntimeTypes(OfWidth<(\d+)>)?", function)
    if general:
        return {"kernel": name + tree_of(function), "x": "any", "weights": "any",
                "width": general.group(2) or "any",
                "variant": "base", "activation": "runtime"}
    sized = re.search(r"SizedTypes<(\d+), (\d+), (\d+)>", function)
    if sized:
        x, state, width = sized.groups()
        return {"kernel": name + tree_of(function), "x": f"{x} bytes", "weights": "any",
                "width": width if width != "0" else "any",
                "variant": "base" if state == x else "base, f32 states", "activation": "runtime"}
    plain = re.search(r"<(\w+), (\d+)", function)
    return {"kernel": name, "x": TYPES.get(plain.group(1), plain.group(1)) if plain else "any",
            "weights": "any", "width": plain.group(2) if plain else "any", "variant": "base",
            "activation": "runtime"}


def resources(library):
    """{function: (registers, stack bytes)}"""
    text = run(CUOBJDUMP, "--dump-resource-usage", library)
    rows = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+)", text)
    names = demangled([name for name, _, _ in rows])
    return {names[name]: (int(registers), int(stack)) for name, registers, stack in rows}


def code_bytes(library):
    """{function: bytes of code}"""
    sizes = {}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([CUOBJDUMP, "-xelf", "all", os.path.abspath(library)], check=True, cwd=folder,
                       capture_output=True)
        for cubin in pathlib.Path(folder).iterdir():
            for line in run("readelf", "-SW", str(cubin)).splitlines():
                found = re.match(r"\s*\[ *\d+\] \.text\.(\S+)\s+\S+\s+\S+\s+\S+\s+(\S+)", line)
                if found:
                    sizes[found.group(1)] = int(found.group(2), 16)
    names = demangled(list(sizes))
    return {names[name]: size for name, size in sizes.items()}


def print_code(library):
    sizes = code_bytes(library)
    print(f"{len(sizes)} kernels, {sum(sizes.values())} bytes of code (before compression)")
    for axis in ("kernel", "variant", "width", "x", "weights", "activation"):
        totals = collections.defaultdict(lambda: [0, 0])
        for function, size in sizes.items():
            total = totals[axes(function)[axis]]
            total[0] += 1
            total[1] += size
        print(f"\n{axis:<28} kernels     bytes")
        for value, (count, size) in sorted(totals.items(), key=lambda row: -row[1][1]):
            print(f"  {value:<26} {count:>7} {size:>9}")


def table(library):
    """{row: (registers, stack)}, the largest over types of weights and activations."""
    rows = {}
    for function, (registers, stack) in resources(library).items():
        found = axes(function)
        row = ", ".join(found[axis] for axis in ("kernel", "variant", "width", "x"))
        before = rows.get(row, (0, 0))
        rows[row] = (max(before[0], registers), max(before[1], stack))
    return rows


def check(library, path):
    lines = pathlib.Path(path).read_text().splitlines()
    recorded = {row: (int(registers), int(stack)) for row, registers, stack in
                (line.rsplit(maxsplit=2) for line in lines if line and not line.startswith("#"))}
    found = table(library)
    failures = 0
    for row in sorted(set(recorded) | set(found)):
        now, before = found.get(row), recorded.get(row)
        if now is None or before is None:
            print(f"{row}: {'is not in the library' if now is None else 'is not in the table'}")
            failures += 1
        elif now[0] > before[0] or now[1] > before[1]:
            print(f"{row}: {now[0]} registers and {now[1]} bytes of stack; recorded {before}")
            failures += 1
    print(f"{len(found)} kernels, {failures} failures")
    return 1 if failures or not found else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library")
    parser.add_argument("--write")
    parser.add_argument("--check")
    arguments = parser.parse_args()
    if arguments.check:
        return check(arguments.library, arguments.check)
    if arguments.write:
        lines = [f"{row:<60} {registers:>3} {stack:>4}"
                 for row, (registers, stack) in sorted(table(arguments.library).items())]
        header = "# kernel, variant, width, x: registers of a thread, bytes of stack (sm_90)\n"
        pathlib.Path(arguments.write).write_text(header + "\n".join(lines) + "\n")
        return 0
    print_code(arguments.library)
    return 0


if __name__ == "__main__":
    sys.exit(main())
