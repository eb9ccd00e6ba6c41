#!/bin/sh
# The corpus of the study "Imputer against CTC": texts from the shipped grammar, voices of three synthesisers.
#
#   sh docs/tools/imputer_vs_ctc/corpus.sh OUT
#
# Writes OUT/texts and the folders train (with valid), voices (voices that training lacks) and engine (an engine that
# it lacks, Flite: other people than ked of Festival). Run again, it goes on where it stopped. A quarter of an hour on two cores.
set -e
out=$1
here=$(dirname "$0")
say="edge-imputer synthesize"
mkdir -p "$out/texts"
$say texts 12600 --seed 1 --without "$here/unseen_words.txt" > "$out/texts/train.txt"
$say texts 2060 --seed 2 --not-in "$out/texts/train.txt" > "$out/texts/test.txt"
head -n 12000 "$out/texts/train.txt" > "$out/texts/train_espeak.txt"
tail -n 600 "$out/texts/train.txt" > "$out/texts/train_festival.txt"
$say speech "$out/train_espeak" --sentences "$out/texts/train_espeak.txt" --engine espeak --voices 400 \
    --clips-each 1 --test-share 0 --valid-share 0.05 --seed 1
$say speech "$out/voices" --sentences "$out/texts/test.txt" --engine espeak --not-in "$out/train_espeak" \
    --clips-each 1 --test '*' --seed 2
$say speech "$out/engine" --sentences "$out/texts/test.txt" --engine flite \
    --clips-each 1 --test '*' --seed 3
$say speech "$out/train_festival" --sentences "$out/texts/train_festival.txt" --engine festival --voice festival:ked_diphone \
    --clips-each 1 --test-share 0 --valid-share 0 --seed 1
edge-imputer data merge "$out/train" "$out/train_espeak" "$out/train_festival"
