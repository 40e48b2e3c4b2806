"""Loads what `bitnet` writes with transformers and with llama.cpp, and compares the logits with its own.

    python3 interop.py BITNET FOLDER

BITNET is the program, FOLDER a place for models. `cargo xtask interop` calls this with a Python that has torch,
transformers, accelerate and llama-cpp-python. An ordinary model is needed, one that nobody trained to be ternary: a small
Llama is trained here, for a minute, on stories that the program's own model tells.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

os.environ["TORCH_COMPILE_DISABLE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
BITNET, FOLDER = sys.argv[1], Path(sys.argv[2])
STORIES = Path(__file__).parents[2] / "bitnet-inference/assets/stories"
HEROES = "hedgehog penguin rabbit fox dragon robot mouse owl bear girl boy whale cat dog turtle".split()
STEPS, BATCH, LENGTH = 300, 16, 96


def bitnet(*args, **more):
    done = subprocess.run([BITNET, *map(str, args)], capture_output=True, text=True, **more)
    if done.returncode:
        sys.exit(f"bitnet {args[0]}: {done.stderr}")
    return done.stdout


def own_logits(model, ids):
    output = FOLDER / "logits.safetensors"
    bitnet("logits", "--model", model, "--tokens", ",".join(map(str, ids)), "--output", output)
    return load_file(output)["logits"].astype(np.float64)


def hf_logits(model, ids):
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    # Packed models keep embedding and norms in bf16 all the same, and refuse to be converted as a whole.
    for tensor in [*loaded.parameters(), *loaded.buffers()]:
        if tensor.is_floating_point():
            tensor.data = tensor.data.float()
    with torch.no_grad():
        return loaded(torch.tensor([ids])).logits[0].double().numpy()


def llama_cpp_logits(model, ids):
    import llama_cpp

    llama = llama_cpp.Llama(str(model), n_ctx=len(ids), n_batch=len(ids), n_threads=1, logits_all=True, verbose=False)
    llama.eval(ids)
    return np.array(llama.scores[: len(ids)], dtype=np.float64)


def compare(what, ours, theirs, max_divergence, min_same):
    """Prints how far the two are apart, and ends the program where that is too far."""
    log_softmax = lambda x: x - x.max(-1, keepdims=True) - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))
    p, q = log_softmax(ours), log_softmax(theirs)
    divergence = (np.exp(p) * (p - q)).sum(-1).mean()
    same = (p.argmax(-1) == q.argmax(-1)).mean()
    differences = np.abs(ours - theirs).max(-1)
    spread = ours.max() - ours.min()
    print(f"{what:<46} {np.median(differences):>10.1e} {differences.max():>10.1e} {spread:>8.1f} {divergence:>11.1e} {100 * same:>8.1f} %")
    if not (divergence <= max_divergence and same >= min_same):
        sys.exit(f"{what}: the logits differ more than rounding explains")


def stories():
    """Texts for training, and one that is held out."""
    path = FOLDER / "stories.txt"
    if not path.exists():
        prompts = FOLDER / "prompts.txt"
        prompts.write_text("".join(f"Once upon a time there was a {hero}" + " who" * (i % 2) + "\n" for hero in HEROES for i in range(6)))
        path.write_text(bitnet("run", "--prompt-file", prompts, "--raw", "--max-tokens", 100, "--temperature", 0.9, "--seed", 7, "--quiet"))
    lines = path.read_text().replace("\\n", "\n").split("\n")
    lines = [line for line in lines if line]
    return lines[:-8], " ".join(lines[-8:])


def train(texts, output):
    """A dense Llama in bf16, with the tokenizer of the stories model."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(STORIES)
    ids = torch.tensor(tokenizer("\n".join(texts), add_special_tokens=False)["input_ids"])
    config = transformers.LlamaConfig(
        vocab_size=2048, hidden_size=256, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=2040, eos_token_id=2041,
        rope_theta=10000.0,
    )
    torch.manual_seed(1)
    model = transformers.LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 30, 1.2 * (1 - step / STEPS))
        starts = torch.randint(len(ids) - LENGTH, (BATCH,))
        batch = torch.stack([ids[start : start + LENGTH] for start in starts])
        loss = model(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.to(torch.bfloat16).save_pretrained(output)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(STORIES / name, output / name)


FOLDER.mkdir(parents=True, exist_ok=True)
texts, held_out = stories()
text_file = FOLDER / "held-out.txt"
text_file.write_text(held_out)
ordinary = FOLDER / "ordinary"
if not ordinary.exists():
    train(texts, ordinary)
ids = [2040, *transformers.AutoTokenizer.from_pretrained(STORIES)(held_out, add_special_tokens=False)["input_ids"]][:256]

print(f"transformers {transformers.__version__}, torch {torch.__version__}, {len(ids)} tokens")
print(f"{'':<46} {'median':>10} {'largest':>10} {'range':>8} {'divergence':>11} {'same choice':>10}")
compare("stories, packed: transformers", own_logits(STORIES, ids), hf_logits(STORIES, ids), 1e-2, 0.97)
compare("a dense Llama: transformers", own_logits(ordinary, ids), hf_logits(ordinary, ids), 1e-4, 0.99)

packed = FOLDER / "packed"
shutil.rmtree(packed, ignore_errors=True)
report = json.loads(bitnet("quantize", "--input", ordinary, "--output", packed, "--text", text_file, "--json"))
ours = own_logits(packed, ids)
compare("the same, quantised: transformers", ours, hf_logits(packed, ids), 1e-2, 0.97)
try:
    import llama_cpp
except ImportError:
    print("llama.cpp: skipped, llama-cpp-python is not installed")
else:
    for format in ("tq1_0", "tq2_0"):
        file = FOLDER / f"{format}.gguf"
        bitnet("quantize", "--input", ordinary, "--output", file, "--type", format, "--no-report")
        compare(f"the same as {format}: llama.cpp {llama_cpp.__version__}", own_logits(file, ids), llama_cpp_logits(file, ids), 5e-2, 0.9)

print(f"\nThe dense Llama has a perplexity of {report['perplexity_before']:.2f} on {report['tokens']} tokens of text that it was not trained on;")
print(f"quantised, without training, of {report['perplexity_after']:.2f} (divergence {report['kl_divergence']:.2f}; weights keep {report['sqnr_db']:.1f} dB).")
