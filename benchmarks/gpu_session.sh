#!/usr/bin/env bash
# Everything that wants a GPU, in one run: benchmarks/gpu_session.sh FOLDER [STEP …]
#
# Steps, in this order: tests attention round-8b round-4b decode prefill; all of them where none is named. One that fails
# or takes too long does not stop the next. FOLDER gets each step's log, JSON and plot, and the pair that decode trains,
# which the next run there does not train again.
#
# From the environment: PYTHON, the interpreter; each step's most seconds as TESTS_S, ATTENTION_S, ROUND_8B_S, ROUND_4B_S,
# DECODE_S, PREFILL_S; DFLASH_COMMIT, for the results of a copy without its git history.
set -u

steps=(tests attention round-8b round-4b decode prefill)
usage="usage: $0 FOLDER [${steps[*]}]"
(($# > 0)) || { echo "$usage" >&2 && exit 2; }
mkdir -p "$1" && folder=$(cd "$1" && pwd) || exit 2
shift
for wanted in "$@"; do
    [[ " ${steps[*]} " == *" $wanted "* ]] || { echo "no step $wanted; $usage" >&2 && exit 2; }
done
(($# > 0)) && wanted_steps=" $* " || wanted_steps=" ${steps[*]} "

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
python=${PYTHON:-python3}
export HF_HUB_OFFLINE=1 TQDM_DISABLE=1 MPLBACKEND=agg
failed=0
summary=()

# Runs a step's command, if the step is wanted, for at most so many seconds.
step() {
    local name=$1 seconds=$2 begin=$SECONDS code result
    shift 2
    [[ $wanted_steps == *" $name "* ]] || return 0
    echo "== $name, at most $seconds s: $*"
    timeout --kill-after=10 "$seconds" "$@" >"$folder/$name.log" 2>&1
    code=$?
    case $code in
        0) result="done" ;;
        124 | 137) result="out of time" ;;
        *) result="failed ($code)" ;;
    esac
    ((code == 0)) || failed=1
    tail -n 60 "$folder/$name.log"
    summary+=("$(printf '%-10s %-14s %5d s' "$name" "$result" $((SECONDS - begin)))")
}

# A benchmark as a step: its name and module, the step's seconds, and a limit of its own within them, so that it ends with
# its tables; then further flags.
benchmark() {
    local name=$1 module=$2 seconds=$3 own=$4
    shift 4
    step "$name" "$seconds" "$python" -m "benchmarks.$module" "$@" \
        --json "$folder/$name.json" --plot "$folder/$name.png" --time-limit-s "$own"
}

tests_s=${TESTS_S:-600} attention_s=${ATTENTION_S:-240} round_8b_s=${ROUND_8B_S:-420} round_4b_s=${ROUND_4B_S:-360}
decode_s=${DECODE_S:-540} prefill_s=${PREFILL_S:-300}

# Of pytest's plugins only what the tests themselves need: a GPU machine may lack the others.
step tests "$tests_s" "$python" -m pytest -q -m gpu -o addopts= --import-mode=importlib tests/core
benchmark attention attention "$attention_s" $((attention_s * 3 / 4))
benchmark round-8b round "$round_8b_s" $((round_8b_s * 3 / 4)) --model qwen3-8b
benchmark round-4b round "$round_4b_s" $((round_4b_s * 3 / 4)) --model qwen3-4b
# Its own limit is for the measuring, which comes after the training.
benchmark decode decode "$decode_s" $((decode_s * 2 / 5)) --work "$folder/pair"
benchmark prefill prefill "$prefill_s" $((prefill_s / 2))

echo "== summary; everything is in $folder"
printf '%s\n' "${summary[@]}"
exit $failed
