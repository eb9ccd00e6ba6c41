#!/bin/sh
# The corpus of the study "Imputer against CTC": sentences in voices of three synthesisers, and those of a fourth.
#
#   sh docs/tools/imputer_vs_ctc/corpus.sh OUT [KOKORO]
#
# Writes OUT/train (with valid): commands and stories of the shipped text grammar, coffee orders and strings of digits
# by eSpeak, some by Festival's ked, and the corpus KOKORO (kokoro_sentences) where it is given; OUT/voices: new texts in
# voices of eSpeak that training lacks; OUT/engine: the same texts by an engine that it lacks, Flite (of other people than
# ked). No training sentence has a word of unseen_words.txt. Run again, it goes on where it stopped. Ten minutes on two cores.
set -e
out=$1
here=$(dirname "$0")
unseen="$here/unseen_words.txt"
say="edge-imputer synthesize"
texts="$out/texts"
mkdir -p "$texts"
$say texts 12600 --seed 1 --without "$unseen" > "$texts/train.txt"
$say texts 2060 --seed 2 --not-in "$texts/train.txt" > "$texts/test.txt"
head -n 12000 "$texts/train.txt" > "$texts/commands.txt"
tail -n 600 "$texts/train.txt" > "$texts/festival.txt"
$say texts 3500 --seed 1 --without "$unseen" --grammar "$here/../../examples/coffee.jsgf" > "$texts/coffee.txt"
$say texts 2000 --seed 1 --grammar "$here/digits.txt" > "$texts/digits.txt"

train() { # NAME ENGINE OPTIONS...
    name=$1
    shift
    $say speech "$out/train_$name" --sentences "$texts/$name.txt" --clips-each 1 --test-share 0 --seed 1 --engine "$@"
}
train commands espeak --voices 400 --valid-share 0.05
train coffee espeak --voices 400 --valid-share 0.05
train digits espeak --voices 400 --valid-share 0.05
train festival festival --voice festival:ked_diphone --valid-share 0
$say speech "$out/voices" --sentences "$texts/test.txt" --engine espeak --not-in "$out/train_commands" \
    --not-in "$out/train_coffee" --not-in "$out/train_digits" --clips-each 1 --test '*' --seed 2
$say speech "$out/engine" --sentences "$texts/test.txt" --engine flite --clips-each 1 --test '*' --seed 3
edge-imputer data merge "$out/train" "$out/train_commands" "$out/train_coffee" "$out/train_digits" \
    "$out/train_festival" ${2:+"$2"} --split train --split valid --exclude "$(grep -v '^#' "$unseen" | tr '\n' ' ')"
