#!/usr/bin/env bash
# Makes the clips in demo/voices from demo/voices.tsv. They are committed: nothing that runs needs this script.
#   apt-get install espeak-ng sox && demo/make_voices.sh
set -euo pipefail
cd "$(dirname "$0")"

raw=$(mktemp --suffix=.wav)
trap 'rm -f "$raw"' EXIT
tail -n +2 voices.tsv | while IFS=$'\t' read -r voice_id _ espeak_voice speed pitch text; do
    espeak-ng -v "$espeak_voice" -s "$speed" -p "$pitch" -w "$raw" "$text"
    # 22.05 to 16 kHz. -R: the same dither each time; norm -3: room for what the resampler overshoots.
    sox -R "$raw" -r 16000 -c 1 -b 16 "voices/$voice_id.wav" norm -3
done
