"""What every model shares: its configuration, the contract, and the parts around the layers.

    memory = model.init_memory(lanes=8, length=640)
    hidden, memory, extras = model(tokens, memory, starts)
    nll = model.head.loss(hidden, targets)

Shapes: B lanes, T tokens of this call, M slots, S = M + tokens of the segment so far, H heads, K head width, D width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, NamedTuple, get_args, get_origin, get_type_hints

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from remanence.errors import InputError
from remanence.memory import Distances, Memory
from remanence.models.flops import Flops
from remanence.nn.embedding import TokenEmbedding
from remanence.nn.heads import SoftmaxHead
from remanence.nn.initialization import initialize
from remanence.ops.dropout import dropout
from remanence.recording import inferring

MOST_CUTOFFS = 64
"""More bins than any vocabulary needs."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The settings that all architectures have. Subclasses add their own, and a memory_length (0 for none)."""

    architecture: ClassVar[str]
    synonyms: ClassVar[Mapping[str, str]] = {"num_slots": "memory_length", "memory_tokens": "memory_length"}
    """What other architectures call a setting of this one, to suggest it."""
    vocab_size: int
    """V, the number of tokens in the vocabulary."""
    segment_length: int
    """T, the tokens a training segment has; other lengths may be read at any time."""
    num_layers: int
    model_width: int
    """D, even."""
    num_heads: int
    head_width: int
    """K; num_heads * head_width need not be model_width."""
    feed_forward_width: int
    dropout: float = 0.1
    attention_dropout: float = 0.0
    layer_norm_epsilon: float = 1e-5
    embedding_width: int | None = None
    """Width of the embedding table; model_width unless given."""
    cutoffs: tuple[int, ...] = ()
    """Edges of the adaptive softmax, rising; none for a plain softmax."""
    div_value: int = 1
    """Each further bin of the adaptive embedding is this many times narrower."""
    tie_projections: tuple[bool, ...] = ()
    """Whether each bin's output projection is the embedding's; all tied unless given."""
    tie_embedding: bool = True
    """The softmax uses the embedding's table, instead of one of its own."""
    memory_gradient: bool = False
    """Gradients flow from segment to segment through the memory, where the paper stops them, as far as the training
    horizon reaches. Architectures defined with such gradients have them whatever this says."""

    def __post_init__(self) -> None:
        memory_length: int = self.memory_length  # type: ignore[attr-defined]
        for name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal:
                choices = get_args(hint)
                self._require(getattr(self, name) in choices, name, f"one of {', '.join(map(repr, choices))}")
        for name in ("vocab_size", "segment_length", "num_layers", "model_width", "num_heads", "head_width"):
            self._require(getattr(self, name) >= 1, name, "1 or more")
        self._require(self.feed_forward_width >= 1, "feed_forward_width", "1 or more")
        self._require(self.model_width % 2 == 0, "model_width", "even, for sines and cosines take half each")
        self._require(memory_length >= 0, "memory_length", "0 or more")
        for name in ("dropout", "attention_dropout"):
            self._require(0 <= getattr(self, name) < 1, name, "at least 0 and below 1")
        self._require(self.embedding_width is None or self.embedding_width >= 1, "embedding_width", "1 or more")
        self._require(self.layer_norm_epsilon > 0, "layer_norm_epsilon", "positive")
        self._require(len(self.cutoffs) <= MOST_CUTOFFS, "cutoffs", f"at most {MOST_CUTOFFS} edges")
        edges = (0, *self.cutoffs, self.vocab_size)
        rising = all(low < high for low, high in pairwise(edges))
        self._require(rising, "cutoffs", f"rising, above 0 and below the vocabulary size {self.vocab_size}")
        narrowest = (self.embedding_width or self.model_width) // max(self.div_value, 1) ** len(self.cutoffs)
        self._require(self.div_value >= 1 and narrowest >= 1, "div_value", "1 or more and leave the last bin a width")
        self._require(
            len(self.tie_projections) in (0, len(self.cutoffs) + 1),
            "tie_projections",
            f"one true or false for each of the {len(self.cutoffs) + 1} bins, or left out",
        )

    def without_effect(self) -> tuple[str, ...]:
        """A sentence for each setting that is legal but does nothing."""
        return ()

    def _require(self, holds: bool, name: str, allowed: str) -> None:
        if not holds:
            raise InputError(f"model.{name} is {getattr(self, name)!r}, but it must be {allowed}.")


@dataclass(frozen=True)
class Extras:
    """What a model tells about one call when asked; everything else stays None."""

    interpolation: tuple[Float[Tensor, "B M H"], ...] | None = None
    """LaMemo's alpha for each layer but the last: the share of what a slot held that it keeps."""
    attention_mass: Float[Tensor, "L H S"] | None = None
    """Mean attention weight by distance (0 first), over lanes and queries of this call."""
    auxiliary_loss: Float[Tensor, " B"] | None = None
    """What training minimises beside the loss, for each lane, already weighted. Given in training mode, always."""


class ModelOutput(NamedTuple):
    """What a call gives back."""

    hidden: Float[Tensor, "B T D"]
    """For `head.loss` and `head.logits`."""
    memory: Memory
    extras: Extras


class LanguageModel(nn.Module):
    """The contract, and everything around the layers. An architecture adds `init_memory`, `_read` and `_close`."""

    config_class: ClassVar[type[ModelConfig]]
    memory_class: ClassVar[type[Memory]]

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        num_bins = len(config.cutoffs) + 1
        self.embedding = TokenEmbedding(
            config.vocab_size,
            config.model_width,
            config.embedding_width or config.model_width,
            config.cutoffs,
            config.div_value,
        )
        self.head = SoftmaxHead(
            self.embedding, config.tie_projections or (True,) * num_bins, tie_embedding=config.tie_embedding
        )

    def initialize(self, generator: torch.Generator) -> None:
        """Fill all parameters with their values before training (`nn/initialization.py`)."""
        initialize(self, generator)

    # The contract

    @property
    def memory_carries_gradient(self) -> bool:
        """Whether a loss can reach earlier segments through the memory."""
        return self.config.memory_gradient

    @property
    def shift(self) -> int:
        """How far ahead outputs look: the one at position n scores token n + shift of the text."""
        return 1

    @abstractmethod
    def init_memory(self, lanes: int, length: int | None = None, hold: Distances | None = None) -> Any:
        """An empty memory.

        `length` slots (default: the configuration's memory_length). With `hold`, distances beyond the given ones are
        treated as those, for a memory longer than the one trained with.
        """

    def forward(
        self,
        tokens: Int[Tensor, "B T"],
        memory: Any,
        starts: Bool[Tensor, " B"] | None = None,
        lengths: Int[Tensor, " B"] | None = None,
        close: bool = True,
        extras: bool = False,
    ) -> ModelOutput:
        """Read tokens after what the memory holds.

        Args:
            tokens: ids below vocab_size.
            memory: from `init_memory` or an earlier call.
            starts: lanes whose document begins here; their memory is forgotten first.
            lengths: real tokens of each lane, from the left; what follows is padding and leaves no trace in the
                memory. A lane of length 0 keeps its memory untouched. None means that all are real.
            close: whether the segment ends with these tokens. An open segment is continued by the next call; reading
                it in pieces gives the numbers of reading it at once.
            extras: fill the third result.

        Raises InputError when memory and tokens do not fit the model or each other.
        """
        memory, lengths = self._prepare(tokens, memory, starts, lengths, close)
        hidden, memory, told = self._read(tokens, memory, lengths, keep=not close, extras=extras)
        if close:
            memory = self._close(memory, lengths)
        return ModelOutput(self._drop(hidden), memory, told)

    def close(self, memory: Any) -> Any:
        """End the open segment of a memory, as if the last call had closed it. A closed memory stays as it is."""
        return self._close(memory, None) if memory.opened else memory

    def advance(
        self,
        tokens: Int[Tensor, "B T"],
        memory: Any,
        starts: Bool[Tensor, " B"] | None = None,
        lengths: Int[Tensor, " B"] | None = None,
    ) -> Any:
        """The memory after a closed segment, without what only its predictions need.

        Its random draws are the first ones of a whole call, so that a call from the same generator state repeats them.
        """
        return self(tokens, memory, starts, lengths).memory

    def peek(self, memory: Any) -> Float[Tensor, "B 1 D"]:
        """What predicts the next token, from all that was read.

        Only models with shift 0 need it: the last output of the others is that already.
        """
        raise TypeError(f"{type(self).__name__} has shift {self.shift}: its last output predicts the next token.")

    def with_projections(self, memory: Any) -> Any:
        """The same memory, which also keeps what fixed weights make of its slots, where anything can be saved by that.

        For reading with weights that do not change, without gradients: every later memory keeps it, too. The numbers
        are the same, to rounding; the memory is larger, and costs less to read where it is longer than a segment.
        """
        return memory

    def waits(self, memory: Any, close: bool = False) -> bool:
        """Whether reading one more token after this memory waits for the device, to learn a number that it holds.

        What does not wait can be recorded as a graph. It never depends on the numbers in the memory.
        """
        return False

    def distances(self, segment_length: int | None = None, memory_length: int | None = None) -> Distances:
        """The largest distances that occur with such lengths (default: the configuration's).

        None in both directions for a model without positions relative to the query.
        """
        return Distances()

    def flops(
        self,
        lanes: int = 1,
        segment_length: int | None = None,
        memory_length: int | None = None,
        tails: Sequence[float] | None = None,
    ) -> Flops | None:
        """Operations of the matrix products of one closed segment of all lanes, its loss included, memories full.

        Lengths are those of the configuration unless given; `tails` says how many targets lie in each tail of an
        adaptive softmax. None where the architecture has no formula of its own: an inherited one would count another
        model.
        """
        if "_count" not in vars(type(self)):
            return None
        segment = self.config.segment_length if segment_length is None else segment_length
        memory = self.config.memory_length if memory_length is None else memory_length
        flops = Flops()
        flops.add_embedding(self.embedding, lanes * segment)
        self._count(flops, lanes, segment, memory)
        flops.add_head(self.head, lanes * segment, tails)
        return flops

    def _prepare(
        self, tokens: Tensor, memory: Any, starts: Tensor | None, lengths: Tensor | None, close: bool
    ) -> tuple[Any, Tensor | None]:
        """Memory and lengths as `_read` is given them. Raises InputError when they do not fit."""
        self._check(tokens, memory, starts, lengths, close)
        if starts is not None:
            memory = memory.reset(starts)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            memory = memory.for_gradients()
        if not (memory.opened or self.memory_carries_gradient or inferring()):
            # An open segment keeps its graph: it is one segment, however many calls read it.
            memory = memory.detach()
        return memory, None if lengths is None else lengths.clamp(0, tokens.shape[1])

    # What an architecture adds

    @abstractmethod
    def _read(
        self, tokens: Tensor, memory: Any, lengths: Tensor | None, *, keep: bool, extras: bool
    ) -> tuple[Tensor, Any, Extras]:
        """Pass tokens through the layers: hidden states, the memory with its segment open, extras.

        Without `keep` the segment is closed next, so what only a continuation needs may be left out.
        """

    @abstractmethod
    def _close(self, memory: Any, lengths: Tensor | None) -> Any:
        """Fold the open segment into the memory. Cuts the gradient where the paper does."""

    def _count(self, flops: Flops, lanes: int, segment: int, memory: int) -> None:
        """Add all between the embedding and the head. A class without it has no formula."""

    # Shared parts

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    def _slots(self, lanes: int, length: int | None) -> int:
        """How many slots a new memory has. Raises InputError for impossible numbers."""
        slots = self.config.memory_length if length is None else length
        if lanes < 1 or slots < 0:
            raise InputError(
                f"A memory of {lanes} lanes and {slots} slots was asked for; give 1 or more and 0 or more."
            )
        return slots

    def _embed(self, tokens: Tensor) -> Tensor:
        return self._drop(self.embedding(tokens))

    def _cut(self, tensor: Tensor) -> Tensor:
        """Where the paper stops the gradient between segments."""
        return tensor if self.memory_carries_gradient else tensor.detach()

    def _drop(self, hidden: Tensor, lanes: bool = True) -> Tensor:
        return dropout(hidden, self.config.dropout, self.training, lanes)

    @property
    def _attention_dropout(self) -> float:
        return self.config.attention_dropout if self.training else 0.0

    def _check(self, tokens: Tensor, memory: Any, starts: Tensor | None, lengths: Tensor | None, close: bool) -> None:
        if not isinstance(memory, self.memory_class):
            raise InputError(
                f"A memory of kind {getattr(memory, 'kind', type(memory).__name__)!r} was given to the architecture "
                f"{self.config.architecture!r}; use one from this model's init_memory."
            )
        if tokens.dim() != 2 or tokens.shape[1] < 1 or tokens.is_floating_point():
            raise InputError(
                f"Tokens of shape {tuple(tokens.shape)} and type {tokens.dtype} were given; they must be integers of "
                "shape (lanes, tokens) with at least one token."
            )
        if memory.lanes != tokens.shape[0]:
            raise InputError(
                f"The tokens have {tokens.shape[0]} lanes but the memory has {memory.lanes}; make both the same."
            )
        self._check_memory(memory)
        if tokens.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high = (int(edge) for edge in tokens.aminmax())
            if low < 0 or high >= self.vocab_size:
                raise InputError(
                    f"The tokens go from {low} to {high}, but the vocabulary has {self.vocab_size} ids, 0 to "
                    f"{self.vocab_size - 1}; prepare the text with the tokenizer of the model."
                )
        if memory.opened and starts is not None:
            raise InputError(
                "A document cannot start inside an open segment; end the segment with close(memory) first."
            )
        if lengths is not None and (memory.opened or not close):
            raise InputError("Padding by lengths needs a segment that is read in one call; give it whole, closed.")

    def _check_memory(self, memory: Any) -> None:
        """Raise InputError when the tensors of a memory do not fit this configuration."""

    def _misfit(self, what: str, given: Any, wanted: Any) -> InputError:
        return InputError(
            f"The memory's {what} is {given} but this model's is {wanted}; use a memory made by the same model."
        )
