#!/bin/sh
# The corpus of the study of active learning: a pool of coffee orders, digits and sentences in many voices.
#
#   sh docs/tools/active_study/corpus.sh SENTENCES OUT [KOKORO]
#
# SENTENCES is what docs/tools/imputer_vs_ctc/corpus.sh wrote: its coffee orders and digits by eSpeak and its sentences by
# Festival are the pool, with the corpus KOKORO (kokoro_sentences) where it is given. OUT/pool has them, and as the split
# test new orders and digits, half in voices of eSpeak that the pool lacks, half by Flite, and KOKORO's own test. A minute.
set -e
sentences=$1 out=$2
examples="$(dirname "$0")/../../examples"
say="edge-imputer synthesize"
mkdir -p "$out"
$say texts 250 --seed 9 --not-in "$sentences/texts/coffee.txt" --grammar "$examples/coffee.jsgf" > "$out/test.txt"
$say texts 150 --seed 9 --not-in "$sentences/texts/digits.txt" --grammar "$(dirname "$0")/../imputer_vs_ctc/digits.txt" >> "$out/test.txt"
$say speech "$out/voices" --sentences "$out/test.txt" --engine espeak --not-in "$sentences/train_coffee" \
    --not-in "$sentences/train_digits" --clips-each 1 --test '*' --seed 9
$say speech "$out/engine" --sentences "$out/test.txt" --engine flite --clips-each 1 --test '*' --seed 9
edge-imputer data merge "$out/train" "$sentences/train_coffee" "$sentences/train_digits" "$sentences/train_festival" \
    ${3:+"$3"} --split train --split valid
[ -z "$3" ] || edge-imputer data merge "$out/others" "$3" --split test
edge-imputer data merge "$out/pool" "$out/train" "$out/voices" "$out/engine" ${3:+"$out/others"}
