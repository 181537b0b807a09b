"""The kernels of fused attention: what the compiler makes of them, and how fast they are with which blocks.

    python benchmarks/attention_kernels.py --compile            registers, spills and shared memory; needs no GPU
    python benchmarks/attention_kernels.py                      on a GPU: times beside the plain path

The first compiles for compute capability 9.0 with the assembler that comes with Triton. The second checks context and
gradients against the plain path before it times anything; its FLOPs are those of the model (content, position and
context; twice that backward). What is best goes into `blocks` in ops/attention/launch.py.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

NAMES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
FLOATS = ("logsum", "logsum_gradient", "correction", "column_sums", "distance_sums", "sums_result", "table_result")
INPUTS = ("content", "asked", "keys", "values", "positions", "distance_bias", "context", "gradient", "key_result")
SHAPES = [("enwik8", 22, 8, 64, 512, 512), ("wikitext-103", 60, 10, 41, 150, 150), ("long", 4, 8, 64, 512, 3584)]
CANDIDATES = [
    (64, (4, 4, 4, 4), (2, 2, 2, 1)),
    (64, (4, 4, 4, 4), (3, 2, 2, 1)),
    (64, (4, 4, 4, 4), (1, 1, 1, 1)),
    (64, (4, 8, 8, 8), (2, 2, 2, 2)),
    (64, (8, 8, 8, 8), (2, 2, 2, 2)),
    (32, (4, 4, 4, 4), (2, 2, 2, 1)),
    (32, (2, 2, 2, 2), (3, 2, 2, 1)),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", action="store_true", help="compile for compute capability 9.0, without a GPU")
    parser.add_argument("--dtypes", nargs="+", choices=NAMES, default=["bfloat16", "float32"])
    parser.add_argument("--widths", nargs="+", type=int, default=[16, 64, 128], help="padded head widths to compile")
    parser.add_argument("--dropout", type=float, default=0.1)
    arguments = parser.parse_args()
    if arguments.compile:
        for dtype in arguments.dtypes:
            for width in arguments.widths:
                compile_all(dtype, width, bool(arguments.dropout))
    elif torch.cuda.is_available():
        for shape in SHAPES:
            time_all(*shape, arguments.dropout)
    else:
        sys.exit("There is no CUDA GPU here to time kernels on; --compile needs none.")


def compile_all(dtype: str, width: int, dropped: bool) -> None:
    """A line for each kernel: registers, bytes of stack that they spill to, bytes of shared memory."""
    from remanence.ops.attention import launch, triton_backward, triton_forward

    rows, warps, stages = launch.blocks(getattr(torch, dtype), width, False)
    switches = {"MASKED": True, "TABLE": True, "BIASED": False, "DROPPED": dropped, "PRECISION": "tf32"}
    constants = {**switches, "BLOCK": rows, "WIDTH": width}
    kernels = [
        (triton_forward.attention_forward, 0, {}),
        (triton_backward.attention_queries, 1, {"ADD": True}),
        (triton_backward.attention_queries, 1, {"ADD": False}),
        (triton_backward.attention_keys, 2, {}),
        (triton_backward.attention_positions, 3, {}),
    ]
    print(f"{dtype}, width {width}, blocks of {rows}: warps, stages, registers, spilled bytes, shared bytes")
    for kernel, number, own in kernels:
        found = compiled(kernel, dtype, {**constants, **own}, warps[number], stages[number])
        print(f"{kernel.__name__:20} {warps[number]} {stages[number]} {' '.join(map(str, found))}", flush=True)


def compiled(kernel: Any, dtype: str, constants: dict[str, Any], warps: int, stages: int) -> tuple[int, int, int]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, aligned = {}, {}
    for place, name in enumerate(kernel.arg_names):
        signature[name] = "constexpr" if name in constants else kind(kernel.__name__, name, NAMES[dtype])
        steps = name.endswith(("_row", "_head", "_lane")) and name != "extent_lane"
        if signature[name].startswith("*") or steps or name in ("width", "value_width", "padded_rows"):
            aligned[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, aligned)
    options = {"num_warps": warps, "num_stages": stages}
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder, "kernel.cubin")
        binary.write_bytes(made.asm["cubin"])
        command = [str(tool), "--dump-resource-usage", str(binary)]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", told).groups()  # type: ignore[union-attr]
    return int(registers), int(stack), made.metadata.shared


def kind(kernel: str, name: str, half: str) -> str:
    """The type of an argument, as Triton writes it."""
    if name in FLOATS or (name == "result" and kernel == "attention_positions"):
        return "*fp32"
    known = {"words": "*i32", "extent": "*i32", "seed": "*i64", "scale": "fp32", "gain": "fp32"}
    inputs = dict.fromkeys((*INPUTS, "value_result", "result"), f"*{half}")
    return {**inputs, **known}.get(name, "i32")


def time_all(name: str, lanes: int, heads: int, width: int, segment: int, slots: int, dropout: float) -> None:
    """Forward and backward of one layer in bfloat16: the plain path, then the kernels in each candidate's blocks."""
    from remanence.ops.attention import fused, launch, relative_attention

    num_keys = slots + segment

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device="cuda", dtype=torch.bfloat16).requires_grad_()

    given = {
        "queries": draw(lanes, heads, segment, width),
        "keys": draw(lanes, heads, num_keys, width),
        "values": draw(lanes, heads, num_keys, width),
        "content_bias": draw(heads, width),
        "position_bias": draw(heads, width),
        "positions": draw(num_keys, heads, width),
    }
    visible = torch.ones(segment, num_keys, dtype=torch.bool, device="cuda").tril(slots).expand(lanes, -1, -1)
    pull = torch.randn_like(given["queries"])

    def step(rate: float) -> tuple[torch.Tensor, ...]:
        context = relative_attention(**given, visible=visible, dropout=rate, with_logsum=True).context
        return (context, *torch.autograd.grad(context, list(given.values()), pull))

    products = 3 * 2 * lanes * heads * width * visible[0].sum().item()
    print(f"{name}: {lanes} lanes, {heads} heads of {width}, {segment} queries, {num_keys} keys, dropout {dropout}")
    plain, best = launch.blocks, None
    fused.MODE = "off"
    expected = step(0.0)
    tell("plain path", step, dropout, products)
    for candidate in CANDIDATES:
        fused.MODE, best = "on", launch.Blocks(*candidate)
        launch.blocks = lambda *_, best=best: best
        try:
            for ours, theirs in zip(step(0.0), expected, strict=True):
                gap = (ours.float() - theirs.float()).norm() / theirs.float().norm()
                assert gap < 0.03, f"differs from the plain path by {gap:.3f}"
            tell(str(best), step, dropout, products)
        except Exception as error:  # a candidate may not fit a chip: the others are still of interest
            print(f"  {best}: {type(error).__name__}: {str(error).splitlines()[0]}")
    launch.blocks, fused.MODE = plain, "auto"
    whole = {part: given[part] for part in ("queries", "keys", "values")}
    tell(
        "scaled_dot_product_attention, no mask, no positions",
        lambda rate: torch.autograd.grad(
            torch.nn.functional.scaled_dot_product_attention(*whole.values(), dropout_p=rate), [*whole.values()], pull
        ),
        dropout,
        2 * 2 * lanes * heads * width * segment * num_keys,
    )


def tell(name: str, step: Any, dropout: float, products: int) -> None:
    """Median time of forward and backward, and what it makes of the model's FLOPs."""
    times = []
    for number in range(25):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        step(dropout)
        end.record()
        torch.cuda.synchronize()
        if number >= 5:
            times.append(begin.elapsed_time(end))
    milliseconds = statistics.median(times)
    print(f"  {name}: {milliseconds:.3f} ms, {3 * products / milliseconds / 1e9:.0f} TFLOP/s", flush=True)


if __name__ == "__main__":
    # The interpreter has nothing to compile.
    os.environ.pop("TRITON_INTERPRET", None)
    main()
