#!/usr/bin/env bash
# The same prompt on a Jetson with and without a drafter, and the drafter alone.
#   deploy/jetson/demo.sh HOST:PORT DRAFTER [options of edge-client generate, such as --tls]
set -euo pipefail
[ $# -ge 2 ] || { sed -n 's/^# \{0,1\}//p' "$0" | sed 1d; exit 2; }
verifier=$1 drafter=$2
shift 2
# The container sees the hub's cache, this folder (certificates, keys), and the drafter's, at the same paths.
mounts=(-v "$HOME/.cache/huggingface:/models" -v "$PWD:$PWD:ro" -w "$PWD")
if [ -e "$drafter" ]; then
    drafter=$(realpath "$drafter")
    [ -d "$drafter" ] && folder=$drafter || folder=$(dirname "$drafter")
    [ "$folder" = "$PWD" ] || mounts+=(-v "$folder:$folder:ro")
fi
edge() { docker run --rm --runtime nvidia --network host "${mounts[@]}" outrider-edge "$@"; }

echo "== power"; command -v nvpmodel >/dev/null && sudo nvpmodel -q || echo "no nvpmodel: not a Jetson?"
echo "== the drafter alone"; edge bench --drafter "$drafter" --gpu-layers -1
for draft in none "$drafter"; do
    echo "== with drafter $draft"
    edge generate --verifier "$verifier" --drafter "$draft" --gpu-layers -1 --seed 7 --max-tokens 128 --json \
        --message "Explain in a few sentences how a rainbow forms." "$@" |
        python3 -c 'import json,sys; o=json.load(sys.stdin); m=o["metrics"]; print(o["text"]); print({k: m[k] for k in
            ("ttft_ms", "ms_per_token", "rtt_ms", "acceptance", "drafting_ms")})'
done
