"""Models to export, and what transformers and llama.cpp make of them."""

import io
import json

import llama_cpp
import pytest
from running import ROOT, good

np = pytest.importorskip("numpy")
gguf = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from vtools.models.published_templates import SOURCES  # noqa: E402

QUANTISED = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1")
PROMPTS = (
    "The capital of France is", "Once upon a time there was", "def fibonacci(n):\n", "Größe, naïve café:", "1, 2, 3, 4,",
    "The three laws of motion are", "Dear Sir or Madam,\n\n", "Water boils at", "I don't think that you'll", "東京は",
)  # fmt: skip
TEXTS = (
    *PROMPTS, "x  two   spaces\n\n\n\ttabs \r\n end ", "12345678 a1b22c333 ３４", "it's IT'S we'Ve I'LL can't",
    "🙂👍🏽 e\u0301 \u00a0nbsp", "foo_bar(x[1]) != {'k': -2.5e10};", "HelloWorld helloWORLD ПриветМир", "a</s>b<s>[PAD]c",
)  # fmt: skip
CHATS = (
    [{"role": "user", "content": "Hi, wörld  é 東"}],
    [
        {"role": "user", "content": "What is 2+2?\n"},
        {"role": "assistant", "content": "It's 4."},
        {"role": "user", "content": "  Why?"},
    ],
)


def change(folder, name="config.json", **values):
    """Set keys of a JSON file; None takes a key away."""
    config = json.loads((folder / name).read_text()) | values
    (folder / name).write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def model(folder, **settings):
    """A small random model beside whatever tokenizer is in the folder; it may be taught some ids, to prefer some tokens."""
    kind, teach = settings.pop("kind", "Llama"), settings.pop("teach", None)
    shape = {
        "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 3, "num_attention_heads": 8,
        "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.1, "eos_token_id": 2,
    }  # fmt: skip
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**shape, **settings})
    made = getattr(transformers, f"{kind}ForCausalLM")(config)
    with torch.no_grad():  # norms and biases that differ from 1 and 0, or an export that loses them would pass
        for name, tensor in made.named_parameters():
            if tensor.dim() == 1:
                tensor.add_(torch.randn_like(tensor) * (0.3 if name.endswith("bias") else 0.1))
    if teach:
        optimizer = torch.optim.AdamW(made.parameters(), 3e-3)
        for step in range(60):
            places = torch.randint(len(teach) - 64, (8,), generator=torch.Generator().manual_seed(step)).tolist()
            rows = torch.tensor([teach[place : place + 64] for place in places])
            made(rows, labels=rows).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    made.save_pretrained(folder)
    return folder


def sentencepiece_model(folder):
    """A Llama with grouped queries and a SentencePiece vocabulary with a [PAD] row, saved as LLaMA was: tokenizer.model."""
    sentencepiece = pytest.importorskip("sentencepiece")
    text = [*(ROOT / "LICENSE").read_text().splitlines(), "Größe, naïve café, 東京タワー, привет мир"] * 3
    raw = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for line in text if line.strip()]), model_writer=raw, vocab_size=1000,
        model_type="bpe", byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        character_coverage=0.99, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(raw.getvalue())
    (folder / "added_tokens.json").write_text('{"[PAD]": 1000}')
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "[PAD]"}
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": True, "add_bos_token": True, **special}
    about = json.dumps({**settings, "chat_template": SOURCES["vicuna-v1.1"]})
    (folder / "tokenizer_config.json").write_text(about)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text(about)  # saving forgets half of it
    return model(folder, teach=tokenizer("\n".join(text)).input_ids, vocab_size=1001)


ROPE = {
    "plain": {"rope_type": "default", "rope_theta": 500000.0},
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0},
    "yarn, attention": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 1.5, "rope_theta": 10000.0},
    "yarn, scales": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "mscale": 0.7, "mscale_all_dim": 1.2, "rope_theta": 10000.0},
}  # fmt: skip


def reference(folder, rows):
    """transformers' log-probabilities after every token of the rows, in fp32."""
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return [torch.log_softmax(loaded(torch.tensor([row])).logits[0].double(), -1) for row in rows]


def continued(folder, prompts, steps):
    """Prompts of ids with the tokens that transformers finds most probable after them."""
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rows = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        for _ in range(steps):
            with torch.no_grad():
                ids = torch.cat([ids, loaded(ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
        rows.append(ids[0].tolist())
    return rows


def compare(folder, file, prompts, steps=24):
    """How many greedy steps were judged, and how many agree; the largest difference of the best tokens' log-probabilities."""
    rows = continued(folder, prompts, steps)
    expected = reference(folder, rows)
    found = llama_cpp.ask(file, rows=rows)["tops"]
    judged = equal = 0
    worst = 0.0
    for prompt, row, mine, theirs in zip(prompts, rows, expected, found, strict=True):
        first = theirs[len(prompt) - 1]
        worst = max(worst, *(abs(mine[len(prompt) - 1][number].item() - value) for number, value in first))
        for place in range(len(prompt) - 1, len(row) - 1):
            best = mine[place].topk(2).values
            if best[0] - best[1] < 0.2:
                break
            judged += 1
            equal += theirs[place][0][0] == row[place + 1]
    return judged, equal, worst


def metadata(file):
    return {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}


def stored(file):
    return {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}


def permuted(weights, heads):
    """Each head's two halves interleaved, written down from the definition: row i of half s becomes row 2 i + s."""
    size = len(weights) // heads
    order = [head * size + s * (size // 2) + i for head in range(heads) for i in range(size // 2) for s in (0, 1)]
    return weights[order]


def expected_tensors(folder, heads, key_heads):
    """GGUF names and fp32 arrays of a model's tensors."""
    from safetensors.torch import load_file

    names = {
        "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    }  # fmt: skip
    expected = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        array = tensor.float().numpy()
        if ".q_proj." in name or ".k_proj." in name:
            array = permuted(array, heads if ".q_proj." in name else key_heads)
        stem, _, kind = name.rpartition(".")
        prefix, _, part = stem.removeprefix("model.layers.").partition(".") if "layers." in stem else ("", "", stem)
        expected[(f"blk.{prefix}." if prefix else "") + f"{names[part]}.{kind}"] = array
    return expected


def assert_equal_everywhere(folder, file):
    """In fp32, after each of 200 tokens, llama.cpp's best tokens have transformers' log-probabilities."""
    row = np.random.default_rng(0).integers(3, 1000, 200).tolist()
    good("export", folder, "--type", "f32", "-o", file)
    found = llama_cpp.ask(file, rows=[row])["tops"][0]
    worst = 0.0
    for mine, theirs in zip(reference(folder, [row])[0], found, strict=True):
        assert mine.max() - mine[theirs[0][0]] < 0.02
        worst = max(worst, *(abs(mine[number].item() - value) for number, value in theirs))
    print(f"{folder}: log-probabilities within {worst:.4f}")
    assert worst < 0.02
