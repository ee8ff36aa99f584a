"""GGUF files: the library's loader gives back the model that was written, with queries and keys in its own order."""

import importlib
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import probing as pb
from probing.core import packages

WIDTH, HEADS, SHARED, INNER, WORDS = 16, 4, 2, 32, 12


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=SHARED,
        max_position_embeddings=32,
        rms_norm_eps=1e-5,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


def permuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Return rows of queries or keys in the order of such files: pairs that turn together stand side by side."""
    return weight.reshape(heads, 2, len(weight) // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def written(net: LlamaForCausalLM, path: Path) -> Path:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(32)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(2)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(SHARED)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(WORDS)
    names = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate"}
    names |= {"mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "self_attn.o_proj": "attn_output"}
    names |= {f"self_attn.{one}_proj": f"attn_{one}" for one in "qkv"}
    for name, tensor in net.state_dict().items():
        path_in, _, _ = name.rpartition(".")
        values = tensor
        if path_in.startswith("model.layers."):
            number, inside = path_in.removeprefix("model.layers.").split(".", 1)
            place = f"blk.{number}.{names[inside]}.weight"
            values = (
                permuted(tensor, HEADS if "q_proj" in inside else SHARED) if inside[-6:] in {"q_proj", "k_proj"} else tensor
            )
        else:
            place = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}[
                path_in
            ] + ".weight"
        writer.add_tensor(place, values.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_file_gives_back_the_logits_of_the_model_it_was_made_of(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    net = llama()
    loaded = pb.load(f"hf:{written(net, tmp_path / 'tiny.gguf')}")
    assert loaded.weights == f"GGUF of {tmp_path / 'tiny.gguf'}"
    ids = torch.tensor([[1, 5, 7, 3, 9], [1, 4, 4, 8, 2]])
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(ids).logits, net(ids).logits)
        as_stored = permuted(net.model.layers[0].self_attn.q_proj.weight, HEADS)
        net.model.layers[0].self_attn.q_proj.weight.copy_(as_stored)
        assert (loaded.model(ids).logits - net(ids).logits).abs().max() > 1e-4  # rows as they stand in the file would show


def test_without_its_packages_a_file_is_refused_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, load = importlib.import_module, pb.load

    def absent(module: str) -> object:
        if module == "gguf":
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)
        return there(module)

    monkeypatch.setattr(packages.importlib, "import_module", absent)
    with pytest.raises(packages.PackageMissingError, match=r"^the package 'gguf' .*pip install 'probing-concepts\[gguf\]'$"):
        load(f"hf:{tmp_path / 'tiny.gguf'}")
