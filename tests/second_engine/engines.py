"""Engines that run an HLO module: a function from its bytes and parameters to its results, all as NumPy arrays."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import ml_dtypes
import numpy as np
from jaxlib import _jax
from jaxlib.mlir import ir
from jaxlib.mlir._mlir_libs import _jax_mlir_ext
from jaxlib.mlir.dialects import stablehlo

BF16 = np.dtype(ml_dtypes.bfloat16)


def interpreter(hlo, parameters):
    """The StableHLO project's own: walks a program operation by operation, with floats computed by LLVM's APFloat."""
    with context(), ir.Location.unknown():
        module = translated(hlo)
        results = stablehlo.eval_module(module, [attribute(value) for value in parameters])
        return [array(result) for result in results]


def iree(hlo, parameters):
    """IREE: compiles through LLVM for this machine's CPU, and runs."""
    from iree import compiler, runtime

    with context(), ir.Location.unknown():
        version = stablehlo.get_minimum_version()  # The one that every reader takes.
        portable = stablehlo.serialize_portable_artifact(translated(hlo), version)
    target = ["--iree-llvmcpu-target-cpu=host"]
    program = compiler.compile_str(portable, target_backends=["llvm-cpu"], extra_args=target)
    config = runtime.Config("local-sync")
    module = runtime.load_vm_module(runtime.VmModule.copy_buffer(config.vm_instance, program), config)
    results = module.main(*(buffer(runtime, config.device, value) for value in parameters))
    results = results if isinstance(results, (tuple, list)) else [results]
    return [result.to_host() for result in results]


ENGINES = {"interpreter": interpreter, "iree": iree}

# IREE 3.13 computes a dot of u8 and s8, both converted to floats, as if both were signed: 255 counts as -1.
# `convert ui8 -> f32` into `dot_general` with `convert i8 -> f32` shows it; the interpreter and XLA agree with the CPU.
UNSIGNED = "reads an unsigned operand of a dot as a signed one"

# Modules that an engine does not take, by a pattern of their names, with the reason.
SKIPS = {
    "interpreter": {"matmul_exact/*,k=0": "aborts in a dot that sums nothing"},
    "iree": {
        "matmul_exact/*u8*": UNSIGNED,
        "attention/*": UNSIGNED,
        "*_invariance/page=*": UNSIGNED,  # These are of attention.
        "model/*/layer": UNSIGNED,
        "store_kv/*/t=0": "divides by zero in its compiler",
    },
}


def context():
    context = ir.Context()
    registry = ir.DialectRegistry()
    _jax_mlir_ext.register_dialects(registry)
    context.append_dialect_registry(registry)
    context.load_all_available_dialects()
    stablehlo.register_dialect(context)
    stablehlo.register_interpreter_dialect(context)
    return context


def translated(hlo):
    """The module in StableHLO: XLA's translation, which has no optimisation in it."""
    return ir.Module.parse(_jax.mlir.hlo_to_stablehlo(hlo))


def attribute(value):
    """An array as MLIR's constant, with its very bits."""
    if value.dtype == BF16:
        return ir.DenseElementsAttr.get(value.view(np.uint16), type=ir.BF16Type.get(), shape=value.shape)
    if value.dtype == np.uint8:
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
    return np.array(bits).view(BF16)


def buffer(runtime, device, value):
    """An argument of IREE's, which takes every type of NumPy's but bf16."""
    if value.dtype != BF16:
        return value
    return device.allocator.allocate_buffer_copy(
        memory_type=runtime.MemoryType.DEVICE_LOCAL,
        allowed_usage=runtime.BufferUsage.DEFAULT | runtime.BufferUsage.MAPPING,
        device=device,
        buffer=value.view(np.uint16),
        element_type=runtime.HalElementType.BFLOAT_16,
    )
