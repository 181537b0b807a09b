"""All kinds of faults, by name."""

from __future__ import annotations

from tests.faults import damage, disks, kills, moments, ranks
from tests.faults.kinds import Kind
from tests.faults.setting import Setting


def no_shim(setting: Setting) -> str | None:
    return None if setting.nursery.library else "no C compiler is here to make the shim with"


KINDS = (
    Kind("kill-train", "SIGKILL of training at random moments, up to four times a run", kills.train_at_random),
    Kind("kill-train-call", "SIGKILL before one of the calls that change files", kills.train_at_a_call, no_shim),
    Kind("kill-save", "SIGKILL at a random microsecond of a slowed save", kills.slow_save_at_random, no_shim),
    Kind("kill-prepare", "SIGKILL of prepare at random moments", kills.prepare_at_random, no_shim),
    Kind("kill-prepare-call", "SIGKILL before one of prepare's calls", kills.prepare_at_a_call, no_shim),
    Kind("signal-train", "SIGTERM or SIGINT at random moments of training", kills.train_signalled),
    Kind("signal-prepare", "SIGTERM or SIGINT at random moments of prepare", kills.prepare_signalled, no_shim),
    Kind("full-tmpfs", "training on a tmpfs that fills", disks.train_on_a_small_disk("tmpfs"), disks.cannot_mount),
    Kind("full-ext4", "training on an ext4 that fills", disks.train_on_a_small_disk("ext4"), disks.cannot_mount),
    Kind("full-call", "training without room from one call on", disks.train_without_room_from_a_call, no_shim),
    Kind("full-prepare", "preparing on a tmpfs that fills", disks.prepare_on_a_small_disk("tmpfs"), disks.cannot_mount),
    Kind("damage-run", "a flipped bit or a cut in every file of a run", damage.in_a_run, finite=True),
    Kind("damage-corpus", "a flipped bit or a cut in every file of a corpus", damage.in_a_corpus, finite=True),
    Kind("clock", "a clock that jumps by years during training", moments.clock, no_shim),
    Kind("clock-prepare", "a clock that jumps by years during prepare", moments.prepare_clock, no_shim),
    Kind("two-runs", "two runs started on one folder", moments.two_runs),
    Kind("two-preparations", "two preparations of one folder", moments.two_preparations),
    Kind("read-only", "folders that may not be written", disks.read_only, disks.not_root, finite=True),
    Kind("rank-killed", "a rank killed at random moments, torchrun starts all again", ranks.killed, slow=True),
    Kind("rank-killed-in-sum", "a rank killed in the middle of an all-reduce", ranks.killed_in_a_sum, slow=True),
    Kind("rank-lost", "a rank killed for good, gone on by 1, 2 or 4 ranks", ranks.killed_for_good, slow=True),
    Kind("ranks-stopped", "SIGTERM to torchrun, gone on by 1 or 2 ranks", ranks.terminated, slow=True),
)
