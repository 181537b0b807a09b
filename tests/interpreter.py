"""Triton's interpreter, which runs kernels on the CPU, with a NumPy that it does not know yet."""

from __future__ import annotations

from typing import Any


def mend() -> None:
    """Two faults of Triton 3.6.

    NumPy 2.4 makes no number of an array with one element, and the bounds of loops are such arrays; and products take
    the bits of bfloat16 for whole numbers.
    """
    from triton.runtime import interpreter

    plain = interpreter._patch_lang_tensor
    if getattr(plain, "mended", False):
        return

    def patch(tensor: Any, scope: Any) -> None:
        plain(tensor, scope)
        scope.set_attr(tensor, "__index__", _number)

    patch.mended = True  # type: ignore[attr-defined]
    interpreter._patch_lang_tensor = patch
    multiply = interpreter.InterpreterBuilder.create_dot

    def create_dot(self: Any, one: Any, other: Any, *rest: Any) -> Any:
        return multiply(self, _widened(one), _widened(other), *rest)

    interpreter.InterpreterBuilder.create_dot = create_dot


def _widened(handle: Any) -> Any:
    """A factor in float32 where it is bfloat16."""
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _number(tensor: Any) -> int:
    return tensor.handle.data.item()
