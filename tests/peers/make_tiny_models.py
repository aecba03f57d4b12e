"""Makes shared/language-model/tests/data: tiny models of each family with what `transformers` computes.

    python tests/peers/make_tiny_models.py

Each folder is a model of random weights (config.json, model.safetensors or shards) with `golden.safetensors`:
token ids [contexts, length] and every hook of every block, [contexts * length, d_model]; the logits [contexts * length,
vocabulary]; and for each hook the loss of the next token, [contexts, length - 1], and the KL divergence from the clean prediction,
[contexts, length], with zeros there: `HOOK.zero.loss`, `HOOK.zero.kl`. All is computed in float64 and rounded once. The weights are large enough that attention is far from uniform.
"""

import json
import pathlib
import shutil

import torch
from hooks import divergence, hook_outputs, next_token_loss, spliced_logits
from safetensors.torch import save_file
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "shared/language-model/tests/data"

GPT2 = dict(vocab_size=37, n_positions=12, n_embd=12, n_layer=2, n_head=3, bos_token_id=36, eos_token_id=36)
LLAMA = dict(
    vocab_size=41,
    hidden_size=12,
    intermediate_size=20,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,  # not hidden_size / heads, as in some Llamas
    max_position_embeddings=16,
    bos_token_id=1,
    eos_token_id=2,
)
GPT_NEOX = dict(
    vocab_size=43,
    hidden_size=16,
    intermediate_size=20,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=16,
    rope_parameters=dict(rope_type="default", rope_theta=100.0, partial_rotary_factor=0.5),
    bos_token_id=0,
    eos_token_id=0,
)
LLAMA3_ROPE = dict(
    rope_type="llama3",
    rope_theta=500.0,
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8,
)


def make(name, model, length, dtype=torch.float32, **save):
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    model.to(dtype).save_pretrained(folder, **save)
    (folder / "generation_config.json").unlink(missing_ok=True)
    model = type(model).from_pretrained(folder, dtype=torch.float32).double()
    ids = torch.randint(0, model.config.vocab_size, (3, length))
    hooks, logits = hook_outputs(model, ids), spliced_logits(model, ids)
    golden = {**hooks, "logits": logits, "loss": next_token_loss(logits, ids)}
    for hook, rows in hooks.items():
        zeroed = spliced_logits(model, ids, hook, torch.zeros_like(rows))
        golden[f"{hook}.zero.loss"] = next_token_loss(zeroed, ids)
        golden[f"{hook}.zero.kl"] = divergence(logits, zeroed, ids)
    golden = {key: x.float().contiguous() for key, x in golden.items()}
    save_file({"ids": ids, **golden}, folder / "golden.safetensors")
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)
    config = json.loads((folder / "config.json").read_text())
    print(f"{name}: {sum(f.stat().st_size for f in folder.iterdir())} bytes, {config['architectures']}")


def main():
    torch.manual_seed(0)
    make("gpt2", GPT2LMHeadModel(GPT2Config(**GPT2)), 12)
    # Without a head the tensors have other names; fp16 weights; shards; another activation function.
    bare = GPT2Model(GPT2Config(**GPT2, n_inner=20, activation_function="relu"))
    make("gpt2-bare-f16-shards", bare, 7, torch.float16, max_shard_size="4KB")
    make("llama", LlamaForCausalLM(LlamaConfig(**LLAMA, rope_theta=100.0)), 16)
    scaled = LlamaConfig(**LLAMA, rope_parameters=LLAMA3_ROPE, attention_bias=True, tie_word_embeddings=True)
    make("llama-bf16-rope-scaled", LlamaForCausalLM(scaled), 16, torch.bfloat16)
    make("gpt-neox", GPTNeoXForCausalLM(GPTNeoXConfig(**GPT_NEOX)), 16)


if __name__ == "__main__":
    main()
