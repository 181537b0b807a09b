"""The tables of a recipe beside [model]: what is read, how it is trained, and how it is scored in the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from remanence.config.tables import at_least
from remanence.errors import InputError


@dataclass(frozen=True)
class DataSettings:
    """The text that is read."""

    corpus: str = ""
    """Folder of the prepared corpus (see `remanence prepare`)."""
    protocol: Literal["published", "document"] = "published"
    """How lanes read it: as endless streams, memory carried across documents (published), or document by document, each
    with a fresh memory."""


@dataclass(frozen=True)
class TrainingSettings:
    """How the model is trained. A step is one update of the weights."""

    steps: int = 1000
    """Updates in all."""
    lanes: int = 16
    """Token streams read side by side, by all processes together."""
    horizon: int = 1
    """Segments read for one update; gradients flow back through all of them where the engine lets them."""
    engine: Literal["truncated", "full", "recompute", "replay"] | None = None
    """How gradients pass from segment to segment: not at all (truncated), by plain backpropagation through time (full),
    with each segment computed twice to save memory (recompute), or by memory replay (replay). Left out, it is full for
    a model whose memory carries gradients, and truncated for others."""
    coasting_steps: bool = False
    """Parity with the published sorting runs: Adam steps after every segment of the horizon, with a gradient of zero
    where nothing is scored, so that it moves on by its running means."""
    accumulation: int = 1
    """Groups the lanes are split into and read one after the other, to save memory; the update stays the same."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """Adam, or Adam with decoupled weight decay."""
    learning_rate: float = 2.5e-4
    """The largest learning rate, reached after the warm-up."""
    betas: tuple[float, float] = (0.9, 0.999)
    """How fast Adam's two running means forget."""
    epsilon: float = 1e-8
    """Added to the denominator of Adam."""
    weight_decay: float = 0.0
    """Decay of the weight matrices; vectors (biases, gains) never decay."""
    schedule: Literal["cosine", "linear", "inverse-sqrt", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup_steps: int = 0
    """Updates over which the learning rate rises linearly."""
    floor: float = 0.0
    """The learning rate never falls below this share of its largest value."""
    clip_norm: float = 0.25
    """Largest norm of all gradients together; 0 leaves them as they are."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Numbers of the matrix products: bfloat16 autocast, float32, or whichever this machine is faster in."""
    distribution: Literal["ddp", "fsdp"] = "ddp"
    """What several processes share beside the lanes (`torchrun`): nothing, each has the whole model and gradients are
    summed (ddp), or weights, gradients and optimizer state, of which each keeps its part (fsdp)."""
    compile: bool | None = None
    """Compile the model with torch.compile: slower to start, faster afterwards on a GPU, where long runs are compiled
    unless this says no."""
    device: str = "auto"
    """Where to compute: auto (a GPU when there is one), cpu, cuda, cuda:1, mps."""
    seed: int = 1111
    """Of the weights, of dropout and of the lanes."""
    log_every: int = 50
    """Steps between two lines of the log."""
    validate_every: int = 1000
    """Steps between two validations; 0 never validates."""
    validation_tokens: int = 0
    """Validate on so many tokens from the beginning of the validation split; 0 takes all of it."""
    save_every: int = 1000
    """Steps between two checkpoints; 0 saves only at validations and at the end."""
    save_minutes: float = 0.0
    """Also save when so many minutes have passed since the last checkpoint; 0 looks at no clock."""
    keep: int = 2
    """Checkpoints kept to resume from, the newest ones; an older one is used where a newer one is damaged."""
    tensorboard: bool = False
    """Also write the log for TensorBoard (needs the extra `tensorboard`)."""

    def __post_init__(self) -> None:
        at_least(1, training__steps=self.steps, training__lanes=self.lanes, training__horizon=self.horizon)
        at_least(1, training__accumulation=self.accumulation, training__log_every=self.log_every)
        at_least(1, training__keep=self.keep)
        at_least(0, training__warmup_steps=self.warmup_steps, training__validate_every=self.validate_every)
        at_least(0, training__save_every=self.save_every, training__validation_tokens=self.validation_tokens)
        at_least(0, training__save_minutes=self.save_minutes)
        if self.validation_tokens == 1:
            raise InputError("training.validation_tokens is 1, but it must be 0, for all of the split, or at least 2.")
        at_least(0, training__weight_decay=self.weight_decay, training__clip_norm=self.clip_norm)
        at_least(0, training__epsilon=self.epsilon, training__floor=self.floor, training__seed=self.seed)
        if self.seed >= 2**63:
            raise InputError(f"training.seed is {self.seed}, but it must be below 2 to the power of 63.")
        if self.learning_rate <= 0:
            raise InputError(f"training.learning_rate is {self.learning_rate:g}, but it must be above 0.")
        if self.floor > 1:
            raise InputError(f"training.floor is {self.floor:g}, but it is a share of the learning rate, at most 1.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"training.betas is {list(self.betas)}, but both must be at least 0 and below 1.")
        if self.coasting_steps and self.engine not in (None, "truncated"):
            raise InputError(
                f'training.coasting_steps is true, but with training.engine "{self.engine}" a horizon has one gradient '
                'alone; set training.engine to "truncated", or training.coasting_steps to false.'
            )
        if self.lanes % self.accumulation:
            raise InputError(
                f"training.accumulation is {self.accumulation}, which does not divide the {self.lanes} lanes; "
                "choose a divisor of training.lanes."
            )


@dataclass(frozen=True)
class EvaluationSettings:
    """How `remanence evaluate` scores the trained model. What is left out is as in training."""

    segment_length: int | None = None
    """Tokens read at once."""
    memory_length: int | None = None
    """Positions remembered; may be longer than in training."""
    compressed_length: int | None = None
    """Compressed slots, for a model that has them."""
    clamp_length: int | None = None
    """Distances above this are treated as this."""
    same_length: bool | None = None
    """Let every token see the same number of tokens."""
    lanes: int | None = None
    """Streams the text is cut into; 1 scores every token but the first after everything before it."""

    def __post_init__(self) -> None:
        least = {"segment_length": 1, "memory_length": 0, "compressed_length": 0, "clamp_length": 1, "lanes": 1}
        for name, minimum in least.items():
            if (value := getattr(self, name)) is not None:
                at_least(minimum, **{f"evaluation__{name}": value})
