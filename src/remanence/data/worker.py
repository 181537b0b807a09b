"""The process that `workers.Crew` starts for every core: reads requests on standard input, answers on standard output.

A message is a line of JSON, followed in answers by the bytes of the arrays that the line describes.
"""

from __future__ import annotations

import json
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from remanence.data.encoding import Encoder, NotText, Task, count_task, encode_task, encoder_for
from remanence.data.tokenizers import load_tokenizer
from remanence.errors import InputError


def main() -> None:
    """Answer until nobody asks or listens any more, which is also so when the process that asks is killed."""
    with suppress(BrokenPipeError):
        _serve()


def _serve() -> None:
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    # Nothing that a library prints may end up among the answers.
    sys.stdout = sys.stderr
    encoders: dict[str, tuple[Encoder | None, np.dtype]] = {}
    for line in requests:
        try:
            _answer(json.loads(line), encoders, answers)
        except NotText as error:
            _send(answers, {"not_text": [error.path, error.offset]})
        except InputError as error:
            _send(answers, {"input_error": str(error)})
        except BrokenPipeError:
            raise
        except Exception:
            _send(answers, {"failure": traceback.format_exc()})


def _answer(request: dict[str, Any], encoders: dict[str, tuple[Encoder | None, np.dtype]], answers: BinaryIO) -> None:
    task = Task(**request["task"] | {"before": bytes(request["task"]["before"])})
    if request["do"] == "count":
        _send(answers, {"counts": count_task(task, request["kind"])})
        return
    folder = request["tokenizer"]
    if folder not in encoders:
        tokenizer = load_tokenizer(Path(folder))
        encoders[folder] = encoder_for(tokenizer, bytes(request["drop"])), np.dtype(request["dtype"])
    encoded = encode_task(task, *encoders[folder])
    documents = encoded.documents.astype("<i8")
    _send(
        answers,
        {"counts": encoded.counts, "tokens": encoded.tokens.nbytes, "documents": documents.nbytes},
        encoded.tokens.tobytes(),
        documents.tobytes(),
    )


def _send(answers: BinaryIO, message: dict[str, Any], *arrays: bytes) -> None:
    answers.write(json.dumps(message).encode() + b"\n")
    for array in arrays:
        answers.write(array)
    answers.flush()
