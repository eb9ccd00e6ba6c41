#!/bin/sh
# The corpus of the study of active learning: a pool of coffee orders and digits in 400 voices.
#
#   sh docs/tools/active_study/corpus.sh SENTENCES OUT
#
# SENTENCES is what docs/tools/imputer_vs_ctc/corpus.sh wrote: its coffee orders by eSpeak, and strings of digits that are
# made here, are the pool. OUT/pool has them, and as the split test new orders and digits in voices that the pool lacks. The
# model that is in use when the study begins (deployed.toml) has heard the voices, but no order and no digit. Two minutes.
set -e
sentences=$1 out=$2
orders="$(dirname "$0")/../../examples/coffee.jsgf"
digits="$(dirname "$0")/../imputer_vs_ctc/digits.txt"
say="edge-imputer synthesize"
mkdir -p "$out"
$say texts 5000 --seed 7 --grammar "$digits" > "$out/digits.txt"
$say speech "$out/digits" --sentences "$out/digits.txt" --engine espeak --voices 400 --clips-each 1 --valid-share 0.05 \
    --test-share 0 --seed 1
$say texts 400 --seed 9 --not-in "$sentences/texts/coffee.txt" --grammar "$orders" > "$out/test.txt"
$say texts 300 --seed 9 --not-in "$out/digits.txt" --grammar "$digits" >> "$out/test.txt"
$say speech "$out/voices" --sentences "$out/test.txt" --engine espeak --not-in "$sentences/train_coffee" \
    --not-in "$sentences/train_commands" --not-in "$out/digits" --clips-each 1 --test '*' --seed 9
edge-imputer data merge "$out/pool" "$sentences/train_coffee" "$out/digits" "$out/voices"
