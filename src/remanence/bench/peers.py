"""What people would pick instead: models of other packages, in the same shape as closely as each allows.

Every peer is wrapped in the same few calls: an empty state, logits of a segment after a state, and a loss. What a
package forces on the shape is said in `forced`, which the results repeat. They come with `pip install
'remanence[bench]'`; one that is not installed is left out with a sentence.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from remanence.bench.settings import MEMORY_TOKENS, SLOTS, Settings

RATE = 2
"""What the compressive peer squeezes into one row, as in our default."""


class Peer:
    """A model of another package. Memory goes in and out, as in ours."""

    name: str
    package: str
    remembers = True
    """Whether the length of the memory is the bench's to choose."""
    fills = 1
    """How many times as many tokens as it has slots fill its memory."""
    forced = ""
    """Where its shape differs from the one that was asked for."""
    model: nn.Module

    def __init__(self, settings: Settings, memory_length: int) -> None:
        raise NotImplementedError

    def begin(self, lanes: int) -> Any:
        """The state of lanes that have read nothing."""
        return None

    def read(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Logits of a segment, and the state after it."""
        raise NotImplementedError

    def loss(self, tokens: Tensor, targets: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Mean nats of a segment, and the state after it."""
        logits, state = self.read(tokens, state)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten()), state


class XTransformers(Peer):
    """Transformer-XL recurrence by x-transformers, with its T5 relative biases, as its README has it."""

    name, package = "x-transformers XL", "x_transformers"
    forced = "relative positions are T5 biases, one number a head and bucket: no position scores"

    def __init__(self, settings: Settings, memory_length: int) -> None:
        library, shape = _import(self.package), settings.shape
        self.model = library.TransformerWrapper(
            num_tokens=shape.vocabulary,
            max_seq_len=settings.segment_length,
            max_mem_len=memory_length,
            emb_dropout=settings.dropout,
            attn_layers=library.Decoder(
                dim=shape.model_width,
                depth=shape.num_layers,
                heads=shape.num_heads,
                attn_dim_head=shape.head_width,
                ff_mult=_times(shape.feed_forward_width, shape.model_width),
                ff_dropout=settings.dropout,
                attn_sublayer_dropout=settings.dropout,
                rel_pos_bias=True,
            ),
        )

    def read(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self.model(tokens, mems=state, return_mems=True)


class GPT2(Peer):
    """GPT-2 of transformers: no memory, its segment is all it sees."""

    name, package = "GPT-2", "transformers"
    remembers = False

    def __init__(self, settings: Settings, memory_length: int) -> None:
        self.model = gpt2(settings, settings.segment_length)
        if settings.shape.num_heads * settings.shape.head_width != settings.shape.model_width:
            self.forced = f"heads {settings.shape.model_width // settings.shape.num_heads} wide"

    def read(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self.model(tokens, use_cache=False).logits, None


class GPT2Window(Peer):
    """GPT-2 with its key-value cache, of which the newest M tokens stay: memory of a kind that needs no training.

    The learned positions end at M + T: once the window is full, a token stands where it ends. What slid out of the
    window lives on in the keys that saw it, so this is no longer the model on the window alone; it is what is usually
    done, and costs what it costs.
    """

    name, package = "GPT-2, sliding cache", "transformers"

    def __init__(self, settings: Settings, memory_length: int) -> None:
        self.memory_length = memory_length
        self.model = gpt2(settings, memory_length + settings.segment_length)

    def read(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        held = 0 if state is None else state.get_seq_length()
        places = torch.arange(held, held + tokens.shape[1], device=tokens.device)[None]
        found = self.model(tokens, past_key_values=state, position_ids=places, use_cache=True)
        for layer in found.past_key_values.layers:
            begin = max(0, layer.keys.shape[2] - self.memory_length)
            layer.keys, layer.values = layer.keys[:, :, begin:], layer.values[:, :, begin:]
        return found.logits, found.past_key_values


class GPT2Again(GPT2Window):
    """The same window without a cache: all its tokens are read again with every segment."""

    name = "GPT-2, window read again"

    def read(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        window = tokens if state is None else torch.cat([state, tokens], dim=1)
        logits = self.model(window, use_cache=False).logits[:, -tokens.shape[1] :]
        return logits, window[:, max(0, window.shape[1] - self.memory_length) :]


class Compressive(Peer):
    """The Compressive Transformer of compressive-transformer-pytorch."""

    name, package = "compressive-transformer-pytorch", "compressive_transformer_pytorch"
    fills = 1 + RATE

    def __init__(self, settings: Settings, memory_length: int) -> None:
        library, shape = _import(self.package), settings.shape
        memory = max(memory_length, settings.segment_length)
        told = [f"feed-forward {4 * shape.model_width} wide"]
        if memory != memory_length:
            told.append(f"{memory} slots, for it takes no fewer than a segment")
        told.append("its version 0.4.0 detaches the weights of keys and values at the first compression: no gradient")
        self.forced = "; ".join(told)
        self.model = library.CompressiveTransformer(
            num_tokens=shape.vocabulary,
            dim=shape.model_width,
            seq_len=settings.segment_length,
            depth=shape.num_layers,
            mem_len=memory,
            cmem_len=memory,
            cmem_ratio=RATE,
            heads=shape.num_heads,
            gru_gated_residual=False,
            attn_layer_dropout=settings.dropout,
            ff_dropout=settings.dropout,
        )

    def read(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        logits, state, _ = self.model(tokens, memories=state)
        return logits, state

    def loss(self, tokens: Tensor, targets: Tensor, state: Any) -> tuple[Tensor, Any]:
        logits, state, auxiliary = self.model(tokens, memories=state)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten()) + auxiliary.sum(), state


class Memformer(Peer):
    """The encoder and decoder of memformer: it encodes a segment, and decodes the next one."""

    name, package = "memformer package", "memformer"
    remembers = False
    fills = 0

    def __init__(self, settings: Settings, memory_length: int) -> None:
        library, shape = _import(self.package), settings.shape
        encoders = max(1, shape.num_layers // 4)
        self.forced = f"feed-forward {4 * shape.model_width} wide; no dropout"
        sides = {"num_tokens": shape.vocabulary, "heads": shape.num_heads, "max_seq_len": settings.segment_length + 1}
        depths = {"enc_depth": encoders, "dec_depth": shape.num_layers - encoders}
        self.model = library.Memformer(
            dim=shape.model_width,
            num_memory_slots=max(1, min(SLOTS, memory_length)),
            mem_update_attn_heads=shape.num_heads,
            **depths,
            **{f"{side}_{name}": value for side in ("enc", "dec") for name, value in sides.items()},
        )

    def begin(self, lanes: int) -> Any:
        device = next(self.model.parameters()).device
        return None, torch.zeros(lanes, 1, dtype=torch.long, device=device)

    def read(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        slots, previous = state
        encoded, slots, _ = self.model(previous, mems=slots)
        return self.model.decoder.net(tokens, context=encoded), (slots.detach(), tokens)  # type: ignore[union-attr]


class RecurrentMemory(Peer):
    """The Recurrent Memory Transformer of recurrent-memory-transformer-pytorch, as plain as it can be made."""

    name, package = "recurrent-memory-transformer-pytorch", "recurrent_memory_transformer_pytorch"
    remembers = False
    fills = 0
    forced = "gated feed-forward of as many weights"

    def __init__(self, settings: Settings, memory_length: int) -> None:
        library, shape = _import(self.package), settings.shape
        self.model = library.RecurrentMemoryTransformer(
            dim=shape.model_width,
            num_tokens=shape.vocabulary,
            depth=shape.num_layers,
            num_memory_tokens=max(1, min(MEMORY_TOKENS, memory_length)),
            seq_len=settings.segment_length,
            dim_head=shape.head_width,
            heads=shape.num_heads,
            ff_mult=_times(shape.feed_forward_width, shape.model_width),
            ff_dropout=settings.dropout,
            use_xl_memories=False,
            num_residual_streams=1,
        )

    def read(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        logits, state, _ = self.model(tokens, state)
        return logits, state.detach()


TRAINED: tuple[type[Peer], ...] = (XTransformers, GPT2, Compressive, Memformer, RecurrentMemory)
SCORED: tuple[type[Peer], ...] = (XTransformers, GPT2Again, GPT2Window, Compressive, Memformer, RecurrentMemory)


def make_peers(
    settings: Settings, memory_length: int, note: Callable[[str], None], kinds: tuple[type[Peer], ...] = TRAINED
) -> list[Peer]:
    """Those that are installed, in training mode on the device of the bench; `note` hears why one is missing."""
    made = []
    for kind in kinds:
        if settings.shape.cutoffs:
            note(f"{kind.name} is left out: it has no adaptive softmax, so its head would be another one.")
            continue
        torch.manual_seed(settings.seed)
        try:
            peer = kind(settings, memory_length)
        except ImportError as error:
            note(f"{kind.name} is left out ({error}): pip install 'remanence[bench]' brings it.")
            continue
        peer.model.to(settings.device)
        made.append(peer)
    return made


def gpt2(settings: Settings, positions: int) -> Any:
    """A GPT-2 with a head of the same size, that sees so many positions."""
    library, shape = _import("transformers"), settings.shape
    config = library.GPT2Config(
        vocab_size=shape.vocabulary,
        n_positions=positions,
        n_embd=shape.model_width,
        n_layer=shape.num_layers,
        n_head=shape.num_heads,
        n_inner=shape.feed_forward_width,
        resid_pdrop=settings.dropout,
        embd_pdrop=settings.dropout,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return library.GPT2LMHeadModel(config)


def state_bytes(state: Any) -> int:
    """The bytes of all tensors in a state."""
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(state) if isinstance(leaf, Tensor))


def _import(name: str) -> Any:
    """The package, without what it warns of while it is read: that is its own business."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def _times(width: int, model_width: int) -> float:
    """A factor by which packages that multiply and round down come to `width`."""
    return (width + 0.5) / model_width
