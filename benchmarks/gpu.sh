#!/usr/bin/env bash
# Everything that only a GPU can tell, in one call of less than nine minutes: are the results right, how fast is
# training, how fast is decoding. Made for one GPU of the H200 class.
#
#     benchmarks/gpu.sh [--out FOLDER] [--minutes 8.5] [--go-on] [--dry-run]
#
#     --out       where results go: $OUT if that is set, else benchmarks/results/gpu
#     --minutes   when to stop starting things; every section also has a limit of its own
#     --go-on     measure although a test failed (without it nothing is timed then)
#     --dry-run   tiny sizes, on the CPU where there is no GPU: every line of this script runs, the figures mean nothing
#
# Nothing needs to be installed: the package is run from src. PYTHON names the interpreter (python3). Needed there are
# torch (2.11 or later, with triton), numpy, safetensors, jaxtyping, rich, pytest; and tyro with docstring-parser and
# typeguard, and tomli-w, which are pure Python. A machine without network takes what it lacks as wheels: put them
# into a folder, and name it in REMANENCE_WHEELS:
#
#     pip download --no-deps -d wheels tyro docstring-parser typeguard tomli-w
#     REMANENCE_WHEELS=wheels benchmarks/gpu.sh
#
# beartype need not be there: the tests then run without the check of shapes. transformers, where it is installed,
# brings the GPT-2 that generation is compared with.
#
# Sections, in this order; each writes FOLDER/NAME.log, and results.json and results.md in FOLDER/NAME/ where it measures:
#     environment   machine, versions
#     tests         tests/gpu and the other tests that need a GPU; kernels first. Where only the kernels fail, they are
#                   switched off (REMANENCE_FUSED_ATTENTION=off) with --go-on, and the rest is measured without them
#     compiling     what is compiled gives the same numbers; the large models are compiled beside it, all at once
#     train-*       the published enwik8 and WikiText-103 base shapes: all models eager, the large three also compiled,
#                   with widths padded, and beside the limit
#     generate-*    decoding with and without graphs, 1, 16 and 64 texts
#     summary       FOLDER/summary.md and FOLDER/summary.json, of whatever there is; written again after each section
#
# The limits add up to more than there is time for, since most sections need much less. The summary calls a measurement
# "cut" that its limit or the end of the time stopped, and what a test so stopped was to show "not shown".
set -u

root=$(cd "$(dirname "$0")/.." && pwd)
out=${OUT:-$root/benchmarks/results/gpu}
minutes=8.5
dry=
go_on=
while [ $# -gt 0 ]; do
    case $1 in
        --out) out=$2; shift ;;
        --minutes) minutes=$2; shift ;;
        --go-on) go_on=yes ;;
        --dry-run) dry=yes ;;
        *) echo "gpu.sh: $1 is no option; there are --out FOLDER, --minutes N, --go-on, --dry-run" >&2; exit 2 ;;
    esac
    shift
done
mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd)
cd "$root" || exit 2

python=${PYTHON:-python3}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export PYTHONPATH="$root/src:$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$scratch/compiled} TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$scratch/triton}
if [ -n "${REMANENCE_WHEELS:-}" ]; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$scratch/site" "$REMANENCE_WHEELS"/*.whl || exit 2
    PYTHONPATH="$PYTHONPATH:$scratch/site"
fi
began=$(date +%s)
export SECTIONS="$scratch/sections.tsv"
: > "$SECTIONS"

left() { awk -v m="$minutes" -v s="$(($(date +%s) - began))" 'BEGIN { printf "%d", m * 60 - s }'; }

# section NAME SECONDS COMMAND...: run with a limit, keep what it says, note how it ended, and go on whatever that was.
section() {
    local name=$1 limit=$2 started status lost=cut told
    shift 2
    case $name in tests-* | compiling) lost="not shown" ;; esac
    # What an earlier run left there is no figure of this one.
    rm -f "$out/$name.log" "$out/$name/results.json" "$out/$name/results.md"
    [ "$(left)" -lt "$limit" ] && limit=$(left)
    if [ "$limit" -lt 10 ]; then
        printf '%s\t%s\t0\n' "$name" "$lost: no time left to begin" >> "$SECTIONS"
        echo "== $name: $lost, no time left to begin"
        "$python" benchmarks/gpu_summary.py "$out" || true
        return 124
    fi
    started=$(date +%s)
    echo "== $name (at most $limit s)"
    timeout --kill-after=10 "$limit" "$@" > "$out/$name.log" 2>&1
    status=$?
    case $status in
        0) told=done
           # How many tests there were, and how many of them were skipped.
           [ "$lost" = cut ] || told="done: $(grep -E '[0-9]+ (passed|skipped)' "$out/$name.log" | tail -n 1 | tr -d '=')" ;;
        124 | 137) told="$lost: stopped after $limit s" ;;
        *) told="failed ($status)" ;;
    esac
    printf '%s\t%s\t%s\n' "$name" "$told" "$(($(date +%s) - started))" >> "$SECTIONS"
    echo "   $told, $(($(date +%s) - started)) s"
    [ "$status" -eq 0 ] || tail -n 15 "$out/$name.log"
    "$python" benchmarks/gpu_summary.py "$out" || true
    return "$status"
}

bench() { # NAME SECONDS ARGUMENTS...
    local name=$1 limit=$2
    shift 2
    # A bench refuses to replace what another command found.
    rm -f "$out/$name/results.json" "$out/$name/results.md"
    section "$name" "$limit" "$python" -m remanence bench "$@" --out "$out/$name"
}

tests() { # NAME SECONDS FILES...: no plug-in, and warnings of versions that are not ours stop nothing
    local name=$1 limit=$2
    shift 2
    section "$name" "$limit" "$python" -m pytest -q -x -p no:cacheprovider -W default "${workers[@]}" "$@"
}

# A test that was stopped by its limit has not failed: the summary says that it was stopped, and things go on.
failed() { [ "$1" -ne 0 ] && [ "$1" -ne 124 ] && [ "$1" -ne 137 ]; }

workers=()
[ -z "$dry" ] && "$python" -c 'import xdist' 2> /dev/null && workers=(-n 4)

if [ -n "$dry" ]; then
    # What compiles here is tested elsewhere, and takes minutes on a CPU.
    export DRY=yes REMANENCE_GPU_TESTS=cpu TORCHDYNAMO_DISABLE=1 OMP_NUM_THREADS=1
    small=(--quick --rounds 1 --no-peers)
    fast=(--quick --rounds 1 --memory-length 8)
    few=("${fast[@]}")
    texts=(1 2)
else
    # Closing a segment is in every figure, and recording it takes as many steps: shorter ones than in training.
    small=(--rounds 3 --segment-length 128)
    fast=(--rounds 7)
    few=(--rounds 3)
    texts=(1 16 64)
fi

section environment 60 "$python" - << 'END'
import platform, torch
print("python", platform.python_version(), "torch", torch.__version__, "CUDA", torch.version.cuda)
if torch.cuda.is_available():
    about = torch.cuda.get_device_properties(0)
    print(about.name, f"{about.total_memory / 2**30:.0f} GiB, {about.multi_processor_count} multiprocessors, compute {about.major}.{about.minor}")
else:
    print("no CUDA GPU")
import jaxtyping, numpy, rich, safetensors, tomli_w, tyro
END
if [ $? -ne 0 ]; then
    echo "gpu.sh: something is missing; see the head of this script" >&2
    exit 2
fi
if [ -z "$dry" ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "gpu.sh: there is no CUDA GPU; --dry-run runs tiny sizes without one" >&2
    exit 2
fi

# Correctness. In a dry run a few of the bodies stand for all.
if [ -n "$dry" ]; then
    tests tests-models 90 tests/gpu/test_cuda.py -k "lamemo-full and (decoding or cpu)"
    right=$?
else
    right=0
    tests tests-kernels 60 tests/gpu/test_attention_kernels.py
    if failed $?; then
        right=1
        export REMANENCE_FUSED_ATTENTION=off
        echo "   the kernels of attention are switched off from here on"
    fi
    files=(tests/gpu/test_cuda.py tests/generation/test_cuda.py tests/evaluation/test_cuda.py)
    tests tests-models 90 "${files[@]}" -k "not compiled"
    failed $? && right=1
fi

# Compiling takes minutes for a large model, but many can be compiled at once: what they make is kept on disk, where
# the timed runs find it. Nothing is timed meanwhile, and the tests of what is compiled run beside it.
main=(transformer transformer-xl lamemo)
others=(compressive infinite-former memformer rmt)
enwik8=(--shape enwik8-base --lanes 44 --dtype bfloat16 --no-peers)
wikitext=(--shape wikitext-103-base --lanes 64 --dtype bfloat16 --no-peers)
compiling() {
    local model status
    for model in "${main[@]}"; do
        "$python" -m remanence bench train --models "$model" "${enwik8[@]}" --compile --rounds 1 &
    done
    "$python" -m pytest -q -p no:cacheprovider -W default tests/gpu/test_cuda.py -k "compiled and (lamemo or segment)"
    status=$?
    wait
    return $status
}
if [ -z "$dry" ]; then
    export -f compiling
    declare -p python main enwik8 > "$scratch/compiling"
    section compiling 100 bash -c ". '$scratch/compiling'; compiling"
    failed $? && right=1
else
    enwik8=(--no-peers)
    wikitext=(--no-peers)
fi
if failed $right && [ -z "$go_on" ]; then
    echo "gpu.sh: a test failed, so nothing is timed; --go-on measures all the same" >&2
    exit 1
fi

# Training, what matters most first.
bench train-enwik8 120 train --models "${main[@]}" "${enwik8[@]}" --compile --limit "${fast[@]}"
bench train-wikitext-103-eager 50 train --models "${main[@]}" "${wikitext[@]}" --padded --limit "${fast[@]}"
bench train-enwik8-others 60 train --models "${others[@]}" "${enwik8[@]}" "${few[@]}"
# By twos: one that is cut takes only its neighbour with it.
bench train-wikitext-103-others-1 35 train --models "${others[@]:0:2}" "${wikitext[@]}" "${few[@]}"
bench train-wikitext-103-others-2 35 train --models "${others[@]:2}" "${wikitext[@]}" "${few[@]}"
for number in "${texts[@]}"; do
    bench "generate-$number" 40 generate --shape enwik8-base --dtype bfloat16 --batch "$number" --models transformer-xl lamemo "${small[@]}"
done
bench train-wikitext-103-compiled 100 train --models transformer-xl lamemo "${wikitext[@]}" --compile "${fast[@]}"
TORCHINDUCTOR_SHAPE_PADDING=0 bench train-wikitext-103-unpadded 60 train --models transformer-xl "${wikitext[@]}" --compile "${fast[@]}"

echo
cat "$out/summary.md"
grep -q 'failed' "$SECTIONS" && exit 1
exit 0
