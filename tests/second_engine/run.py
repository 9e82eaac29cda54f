#!/usr/bin/env python3
"""Runs exported modules in the reference interpreter of StableHLO, and compares its results with those of the CPU backend.

    cargo run --release -p samebits-hlo --example modules -- /tmp/modules --models
    pip install -r tests/second_engine/requirements.txt
    python tests/second_engine/run.py /tmp/modules

The interpreter is the StableHLO project's own: it walks a program operation by operation, and computes floats in software
(LLVM's APFloat). jaxlib carries it, and what translates HLO to StableHLO.

What is asked for is the same bits, so the tolerance is zero. A NaN equals any NaN; the sign of a zero is open where the contract
leaves it open. Exits with 1 where a result differs, 2 where a module could not be run.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from multiprocessing import Pool
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import ml_dtypes
import numpy as np
import safetensors
from jaxlib import _jax
from jaxlib.mlir import ir
from jaxlib.mlir._mlir_libs import _jax_mlir_ext
from jaxlib.mlir.dialects import stablehlo

DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "I32": np.dtype(np.int32),
    "BOOL": np.dtype(np.bool_),
}


def main():
    options = parse()
    manifest = json.loads((options.directory / "manifest.json").read_text())
    modules = [module for module in manifest["modules"] if options.only in module["name"]]
    tasks = [(options.directory, module) for module in modules]
    start = time.monotonic()
    with Pool(options.jobs, initializer=open_interpreter) as pool:
        results = list(pool.imap_unordered(check, tasks, chunksize=4))
    seconds = time.monotonic() - start
    results.sort(key=lambda result: result.file)
    report = Report(manifest, results, seconds)
    print(json.dumps(report.as_json(), indent=1) if options.json else report.as_text())
    return report.status()


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("directory", type=Path, help="what the example `modules` wrote")
    parser.add_argument("--only", default="", metavar="TEXT", help="modules whose name contains this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="modules at a time")
    parser.add_argument("--json", action="store_true", help="a line for each module, and the sums")
    return parser.parse_args()


@dataclass
class Result:
    """What became of one module."""

    file: str
    name: str
    group: str
    seconds: float
    elements: int = 0
    differing: int = 0
    largest_difference: float = 0.0
    detail: str = ""
    error: str = ""


def check(task):
    directory, module = task
    result = Result(module["file"], module["name"], module["group"], 0.0)
    start = time.monotonic()
    try:
        parameters, expected = load(directory / f"{module['file']}.safetensors")
        found = interpret((directory / f"{module['file']}.hlo.pb").read_bytes(), parameters)
        compare(result, expected, found, module["zero_sign_is_open"])
    except Exception as error:  # One module that cannot be run must not hide the others.
        result.error = f"{type(error).__name__}: {error}"
    result.seconds = time.monotonic() - start
    return result


def load(path):
    """The parameters and the expected outputs of a module."""
    tensors = {"parameter": {}, "output": {}}
    for name, tensor in safetensors.deserialize(path.read_bytes()):
        kind, index = name.split(".")
        value = np.frombuffer(tensor["data"], DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
        tensors[kind][int(index)] = value
    return ([of[i] for i in range(len(of))] for of in tensors.values())


def open_interpreter():
    global CONTEXT
    CONTEXT = ir.Context()
    registry = ir.DialectRegistry()
    _jax_mlir_ext.register_dialects(registry)
    CONTEXT.append_dialect_registry(registry)
    CONTEXT.load_all_available_dialects()
    stablehlo.register_dialect(CONTEXT)
    stablehlo.register_interpreter_dialect(CONTEXT)


def interpret(hlo, parameters):
    with CONTEXT, ir.Location.unknown():
        module = ir.Module.parse(_jax.mlir.hlo_to_stablehlo(hlo))
        results = stablehlo.eval_module(module, [attribute(value) for value in parameters])
        return [array(result) for result in results]


def attribute(value):
    """An array as MLIR's constant, with its very bits."""
    if value.dtype == DTYPES["BF16"]:
        return ir.DenseElementsAttr.get(value.view(np.uint16), type=ir.BF16Type.get(), shape=value.shape)
    if value.dtype == DTYPES["U8"]:
        return ir.DenseElementsAttr.get(value, type=ir.IntegerType.get_unsigned(8), shape=value.shape)
    return ir.DenseElementsAttr.get(value, shape=value.shape)


def array(attribute):
    """MLIR's constant as an array. NumPy takes no bf16 from it, so such a value is taken as its bits."""
    shaped = ir.ShapedType(attribute.type)
    if not isinstance(shaped.element_type, ir.BF16Type):
        return np.array(attribute)
    dims = "x".join(str(extent) for extent in [*shaped.shape, ""])
    module = ir.Module.parse(
        f"func.func @main(%x: tensor<{dims}bf16>) -> tensor<{dims}i16> {{"
        f" %bits = stablehlo.bitcast_convert %x : (tensor<{dims}bf16>) -> tensor<{dims}i16>"
        f" return %bits : tensor<{dims}i16> }}"
    )
    (bits,) = stablehlo.eval_module(module, [attribute])
    return np.array(bits).view(DTYPES["BF16"])


def compare(result, expected, found, zero_sign_is_open):
    """Counts the elements that differ, and keeps the first and the largest difference."""
    kinds = [[(value.dtype, value.shape) for value in values] for values in (expected, found)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"results of {kinds[1]} in place of {kinds[0]}")
    for index, (a, b) in enumerate(zip(expected, found)):
        result.elements += a.size
        differs = bits(a, zero_sign_is_open) != bits(b, zero_sign_is_open)
        if not differs.any():
            continue
        result.differing += int(differs.sum())
        with np.errstate(invalid="ignore", over="ignore"):
            distances = np.abs(a[differs].astype(np.float64) - b[differs].astype(np.float64))
        # A number in place of a NaN or an infinity is as far off as can be.
        distance = float(np.where(np.isnan(distances), np.inf, distances).max())
        result.largest_difference = max(result.largest_difference, distance)
        if not result.detail:
            at = tuple(int(i) for i in np.argwhere(differs)[0])
            shown = [f"{value[at]} ({bits(value, False)[at]:#x})" for value in (a, b)]
            result.detail = f"output {index} at {list(at)}: expected {shown[0]}, found {shown[1]}"


def bits(value, zero_sign_is_open):
    words = value.view(np.dtype(f"u{value.dtype.itemsize}")).copy()
    if value.dtype in (DTYPES["F32"], DTYPES["F16"], DTYPES["BF16"]):
        words[np.isnan(value)] = np.iinfo(words.dtype).max
        if zero_sign_is_open:
            words[value == 0] = 0
    return words


@dataclass
class Report:
    manifest: dict
    results: list
    seconds: float

    def status(self):
        if any(result.error for result in self.results) or not self.results:
            return 2
        return 1 if any(result.differing for result in self.results) else 0

    def as_text(self):
        head = f"{'':20}{'modules':>8}{'same bits':>11}{'differ':>8}{'failed':>8}{'elements':>10}{'largest':>12}{'seconds':>9}"
        groups = list(dict.fromkeys(result.group for result in self.results))
        rows = [self.row(group, [it for it in self.results if it.group == group]) for group in groups]
        lines = [head, *rows, self.row("all", self.results), *self.complaints()]
        made = f"{self.manifest['expected_from']}, lowered for {self.manifest['lowered_for']}"
        lines.append(f"expected: {made}; {self.manifest['left_out']} cases left out for their size; {self.seconds:.0f} s")
        return "\n".join(lines)

    def row(self, name, results):
        sums = summary(results)
        return (
            f"{name:20}{sums['modules']:8}{sums['same_bits']:11}{sums['differ']:8}{sums['failed']:8}"
            f"{sums['elements']:10}{sums['largest_difference']:12.3g}{sums['seconds']:9.1f}"
        )

    def complaints(self):
        for result in self.results:
            if result.error:
                yield f"{result.file} {result.name}: {result.error.splitlines()[0]}"
            elif result.differing:
                yield f"{result.file} {result.name}: {result.differing} of {result.elements} differ; {result.detail}"

    def as_json(self):
        made = {key: value for key, value in self.manifest.items() if key != "modules"}
        modules = [asdict(result) for result in self.results]
        return {**made, **summary(self.results), "wall_seconds": self.seconds, "modules": modules}


def summary(results):
    return {
        "modules": len(results),
        "same_bits": sum(not it.error and not it.differing for it in results),
        "differ": sum(it.differing > 0 for it in results),
        "failed": sum(bool(it.error) for it in results),
        "elements": sum(it.elements for it in results),
        "largest_difference": max((it.largest_difference for it in results), default=0.0),
        "seconds": sum(it.seconds for it in results),
    }


if __name__ == "__main__":
    sys.exit(main())
