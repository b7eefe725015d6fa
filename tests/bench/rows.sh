#!/bin/sh
# The GPU's rows of docs/performance.md: steps, attention, requests over HTTP, of random weights in
# the shapes of Qwen3 0.6B and Llama 3.1 8B. JSON lines on standard output.
#
#     tests/bench/rows.sh [steps] [attention] [http] [long] [engine]
#
# QUIRE and BENCH_ATTENTION are the programs (default: those of build/). LOAD is a program that sends
# --n requests of --isl random tokens, asks for --osl, from --conc streams, and prints a JSON line;
# prompts of another --seed each time, or the prefix cache answers for some of them.
QUIRE=${QUIRE:-build/quire}
BENCH_ATTENTION=${BENCH_ATTENTION:-build/release/tests/bench/bench_attention}
LOAD=${LOAD:-../shared/tools/load.py}
PORT=${PORT:-8017}
[ $# -gt 0 ] || set -- steps attention http long engine
folder=$(mktemp -d) || exit 1
server=
seed=$(date +%s)
trap '[ -z "$server" ] || kill $server; rm -rf "$folder"' EXIT

# shape NAME "MEMBERS": a folder with a config.json.
shape() {
    mkdir -p "$folder/$1"
    printf '{"torch_dtype": "bfloat16", "hidden_act": "silu", "head_dim": 128, "num_key_value_heads": 8, %s}\n' \
        "$2" >"$folder/$1/config.json"
}
shape q06 '"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024,
    "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16, "vocab_size": 151936,
    "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1000000,
    "tie_word_embeddings": true, "bos_token_id": 151643, "eos_token_id": 151645'
shape l8 '"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 128256,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000,
    "rope_scaling": {"factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
    "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "tie_word_embeddings": false, "bos_token_id": 128000, "eos_token_id": 128001'

dummy="--load-format dummy --skip-tokenizer-init --device cuda"

# bench SHAPE OPTION...
bench() {
    name=$1
    shift
    # shellcheck disable=SC2086
    "$QUIRE" bench "$folder/$name" $dummy "$@"
}

# steps SHAPE BATCHES
steps() {
    bench "$1" --max-model-len 4096 --max-num-batched-tokens 8192 --batch "$2" --requests 0 --repeat 3 \
        --decode-prompt-tokens 128 --prompt-tokens 3900 --prompt-batch 8 --output-tokens 256
}

# serve SHAPE: until it is ready. stop: as an operator does it.
serve() {
    # shellcheck disable=SC2086
    "$QUIRE" serve "$folder/$1" $dummy --served-model-name m --no-access-log --max-num-seqs 512 \
        --port "$PORT" 2>"$folder/log" &
    server=$!
    for _ in $(seq 600); do
        curl -sf "localhost:$PORT/health" >/dev/null && return
        sleep 0.1
    done
    cat "$folder/log" >&2
    exit 1
}
stop() {
    kill $server
    wait $server || exit 1
    server=
}

# load TAG OPTION...
load() {
    seed=$((seed + 1))
    tag=$1
    shift
    python3 "$LOAD" --port "$PORT" --tag "$tag" --seed $seed "$@"
}

for what in "$@"; do
    case $what in
    http | long)
        if [ ! -f "$LOAD" ]; then
            echo "$what: skipped, there is no $LOAD" >&2
            continue
        fi
        ;;
    esac
    case $what in
    steps)
        steps q06 1,64,256
        steps l8 1,16,64,256
        bench q06 --batch 1024 --max-num-seqs 1024 --requests 0 --decode-prompt-tokens 128 \
            --prompt-tokens 128 --output-tokens 64 # the host's part
        ;;
    attention) "$BENCH_ATTENTION" ;;
    http)
        serve q06
        load q06 --n 768 --conc 64
        load q06 --n 2048 --conc 256
        stop
        serve l8
        load l8 --n 384 --conc 64
        load l8 --n 1024 --conc 256
        stop
        ;;
    long)
        serve l8
        load l8 --n 1024 --conc 512 --isl 1000 --osl 1000
        stop
        ;;
    engine) # the same without HTTP
        bench l8 --max-model-len 2048 --max-num-seqs 512 --requests 1024 --prompt-tokens 1000 \
            --output-tokens 1000 --batch 1
        ;;
    *)
        echo "usage: $0 [steps] [attention] [http] [long] [engine]" >&2
        exit 2
        ;;
    esac
done
