#!/usr/bin/env python3
"""Runs exported modules in an engine that is neither ours nor XLA, and compares its results with those of the CPU backend.

    cargo run --release -p samebits-hlo --example modules -- /tmp/modules --models
    pip install -r tests/second_engine/requirements.txt
    python tests/second_engine/run.py /tmp/modules

The same bits are asked for, so there is no tolerance. A NaN equals any NaN; the sign of a zero is open where the contract
leaves it open. Exits with 1 where a result differs, with 2 where a module could not be run.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import safetensors

from engines import BF16, ENGINES, SKIPS

DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": BF16,
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "I32": np.dtype(np.int32),
    "BOOL": np.dtype(np.bool_),
}

def main():
    options = parse()
    manifest = json.loads((options.directory / "manifest.json").read_text())
    modules = [module for module in manifest["modules"] if options.only in module["name"]]
    skipped = {module["name"]: reason_to_skip(options.engine, module["name"]) for module in modules}
    skipped = {name: reason for name, reason in skipped.items() if reason}
    tasks = [module for module in modules if module["name"] not in skipped]
    start = time.monotonic()
    with ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(lambda module: check_apart(options, module), tasks))
    report = Report(options, manifest, results, skipped, time.monotonic() - start)
    print(json.dumps(report.as_json(), indent=1) if options.json else report.as_text())
    return report.status()


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("directory", type=Path, help="what the example `modules` wrote")
    parser.add_argument("--engine", choices=ENGINES, default="interpreter", help="StableHLO's interpreter, or IREE")
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
    seconds: float = 0.0
    elements: int = 0
    differing: int = 0
    largest_difference: float = 0.0
    detail: str = ""
    error: str = ""

    @staticmethod
    def of(module, error=""):
        return Result(module["file"], module["name"], module["group"], error=error)


def reason_to_skip(engine, name):
    return next((reason for pattern, reason in SKIPS[engine].items() if fnmatchcase(name, pattern)), None)


def check_apart(options, module):
    """The check in a process of its own: what an engine does not take, it may answer with an abort."""
    processes = multiprocessing.get_context("fork")
    receiver, sender = processes.Pipe(duplex=False)
    process = processes.Process(target=lambda: sender.send(check(options, module)))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        return Result.of(module, error=f"the engine ended with {process.exitcode}")
    finally:
        process.join()


def check(options, module):
    result = Result.of(module)
    path = options.directory / module["file"]
    start = time.monotonic()
    try:
        parameters, expected = load(path.with_suffix(".safetensors"))
        found = ENGINES[options.engine](path.with_suffix(".hlo.pb").read_bytes(), parameters)
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
    if value.dtype in (np.float32, np.float16, BF16):
        words[np.isnan(value)] = np.iinfo(words.dtype).max
        if zero_sign_is_open:
            words[value == 0] = 0
    return words


@dataclass
class Report:
    options: argparse.Namespace
    manifest: dict
    results: list
    skipped: dict
    seconds: float

    def status(self):
        if any(result.error for result in self.results) or not self.results:
            return 2
        return 1 if any(result.differing for result in self.results) else 0

    def as_text(self):
        left_out = {} if self.options.only else self.manifest["left_out"]
        groups = dict.fromkeys([*(result.group for result in self.results), *left_out])
        rows = [
            row(group, [it for it in self.results if it.group == group], left_out.get(group, 0))
            for group in groups
        ]
        everything = row("all", self.results, sum(left_out.values()))
        return "\n".join([HEAD, *rows, everything, *self.remarks()])

    def remarks(self):
        for reason in dict.fromkeys(self.skipped.values()):
            names = [name for name, why in self.skipped.items() if why == reason]
            yield f"skipped {len(names)}, for the engine {reason}: {', '.join(names[:4])}{', …' * (len(names) > 4)}"
        for result in self.results:
            if result.error:
                yield f"{result.file} {result.name}: {result.error.splitlines()[0]}"
            elif result.differing:
                yield f"{result.file} {result.name}: {result.differing} of {result.elements} differ; {result.detail}"
        guards = "" if self.manifest["guarded"] else " without guards"
        made = f"{self.manifest['expected_from']}, modules lowered for {self.manifest['lowered_for']}{guards}"
        work = f"left out is what computes more than {self.manifest['work_max']} elements"
        yield f"engine {self.options.engine}; expected from {made}; {work}; {self.seconds:.0f} s"

    def as_json(self):
        made = {key: value for key, value in self.manifest.items() if key != "modules"}
        modules = [asdict(result) for result in self.results]
        sums = {**summary(self.results), "skipped": self.skipped, "wall_seconds": self.seconds}
        return {"engine": self.options.engine, **made, **sums, "modules": modules}


HEAD = (
    f"{'':20}{'modules':>8}{'same bits':>11}{'differ':>8}{'failed':>8}{'left out':>10}"
    f"{'elements':>10}{'largest':>10}{'seconds':>9}"
)


def row(name, results, left_out):
    sums = summary(results)
    return (
        f"{name:20}{sums['modules']:8}{sums['same_bits']:11}{sums['differ']:8}{sums['failed']:8}{left_out:10}"
        f"{sums['elements']:10}{sums['largest_difference']:10.3g}{sums['seconds']:9.1f}"
    )


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
