#!/bin/sh
# The default voice-command model from nothing: speech, training, bundle, card, and what it reaches.
#
#   sh docs/tools/voice_commands.sh OUT [KOKORO]
#
# OUT/corpus is that of the study (docs/tools/imputer_vs_ctc/corpus.sh, which says what KOKORO is), OUT/model the run,
# OUT/bundle what a device gets. Run again, it goes on where it stopped. An hour and three quarters of two cores.
set -e
out=$1
here=$(dirname "$0")
[ -e "$out/corpus/train" ] || sh "$here/imputer_vs_ctc/corpus.sh" "$out/corpus" ${2:+"$2"}
resume=
[ -e "$out/model/last.ckpt" ] && resume=--resume
edge-imputer train voice-commands --data "$out/corpus/train" --out "$out/model" $resume
edge-imputer export "$out/model/last.ckpt" --data "$out/corpus/train" --out "$out/bundle" --licence Apache-2.0
# The integers beside the floats they were made of, in voices that training did not have; by onnxruntime, onto the card.
for backend in litert native onnx; do
    card=
    [ $backend = onnx ] && card=--write
    edge-imputer evaluate "$out/bundle" --task transcripts --compare "$out/model/last.ckpt" --data "$out/corpus/voices" \
        --backend $backend --out "$out/evaluation/$backend" --html $card
done
