"""Networks of transformers: heads, hidden units and layers, and what happens where no graph is built."""

from __future__ import annotations

import pytest
import torch
from edgeml.compress.prune_groups import find_groups
from edgeml.compress.prune_model import apply_history, prune

transformers = pytest.importorskip("transformers")

IDS = torch.tensor([[5, 9, 3, 2, 7, 1], [8, 1, 4, 2, 0, 0]])
TEXT = {"input_ids": IDS, "attention_mask": (IDS > 0).long()}
SIZES = {"vocab_size": 12, "hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 24}


def bert():
    torch.manual_seed(0)
    config = transformers.BertConfig(**SIZES, num_hidden_layers=2, max_position_embeddings=8)
    return transformers.BertForSequenceClassification(config).eval()


def vit():
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16,
        num_attention_heads=4,
        intermediate_size=24,
        num_hidden_layers=2,
        image_size=8,
        patch_size=4,
    )
    return transformers.ViTForImageClassification(config).eval()


def outputs(net, inputs):
    with torch.no_grad():
        return net(**inputs).logits


@pytest.mark.parametrize(
    ("make", "inputs"),
    [(bert, TEXT), (vit, {"pixel_values": torch.ones(2, 3, 8, 8) * torch.arange(8.0)})],
)
def test_heads_hidden_units_and_layers_are_found_and_removed(make, inputs):
    net = make()
    groups = find_groups(net, inputs)
    by_kind = {kind: [g for g in groups if g.kind == kind] for kind in ("heads", "hidden", "block")}
    sizes = {(g.kind, g.size) for g in groups}
    assert {("heads", 4), ("hidden", 24), ("block", 1)} <= sizes
    names = [g.name for g in by_kind["heads"]]
    assert names[0].endswith(".heads") and names[1].endswith(".head_size")
    keep = {names[0]: 2, names[1]: 3} | {g.name: 7 for g in by_kind["hidden"][:2]}
    keep[by_kind["block"][1].name] = 0
    pruned, history = prune(net, inputs, keep=keep, groups=groups)
    again = apply_history(make(), inputs, history)
    again.load_state_dict(pruned.state_dict())
    assert torch.equal(outputs(again, inputs), outputs(pruned, inputs))
    assert [e["op"] for e in history] == ["block", "heads", "heads", "hidden"]


def test_the_attention_knows_how_many_heads_are_left():
    net = bert()
    attention = "bert.encoder.layer.0.attention.self"
    pruned, _ = prune(net, TEXT, keep={f"{attention}.heads": [1, 3]})
    left = pruned.get_submodule(attention)
    assert (left.num_attention_heads, left.all_head_size, left.attention_head_size) == (2, 8, 4)
    assert torch.equal(
        left.query.weight, net.get_submodule(attention).query.weight[[4, 5, 6, 7, 12, 13, 14, 15]]
    )


def test_heads_and_their_size_meet_in_one_attention():
    net = bert()
    attention = "bert.encoder.layer.0.attention.self"
    kept = {f"{attention}.heads": [1, 3], f"{attention}.head_size": [0, 1, 3]}
    pruned, history = prune(net, TEXT, keep=kept)
    left = pruned.get_submodule(attention)
    assert (left.num_attention_heads, left.all_head_size, left.attention_head_size) == (2, 6, 3)
    assert [entry["module"] for entry in history] == [attention, attention]
    rows = [4, 5, 7, 12, 13, 15]
    assert torch.equal(left.query.weight, net.get_submodule(attention).query.weight[rows])
    assert torch.equal(outputs(apply_history(bert(), TEXT, history), TEXT), outputs(pruned, TEXT))
    assert left.scaling == net.get_submodule(attention).scaling  # what it was trained with


def test_where_the_graph_never_ends_parts_are_pruned_and_it_is_told():
    """Torch-Pruning 1.6.1 hangs on grouped-query attention (FACTS)."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **SIZES, num_hidden_layers=2, num_key_value_heads=2, use_cache=False
    )
    net, notes = transformers.LlamaForCausalLM(config).eval(), []
    groups = find_groups(net, {"input_ids": IDS}, time_limit_s=0.6, log=notes.append)
    assert {g.kind for g in groups} == {"hidden", "block"}
    assert "LlamaForCausalLM: not within 0.6 s; its parts alone" in notes[0]
    pruned, _ = prune(
        net, {"input_ids": IDS}, keep={"model.layers.1.mlp.gate_proj": 9}, groups=groups
    )
    assert pruned.model.layers[1].mlp.down_proj.in_features == 9


def test_gpt2_keeps_its_heads_and_loses_hidden_units():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=12,
        n_positions=8,
        n_embd=16,
        n_layer=1,
        n_head=4,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    net, notes = transformers.GPT2LMHeadModel(config).eval(), []
    groups = find_groups(net, {"input_ids": IDS}, log=notes.append)
    assert {(g.kind, g.size) for g in groups} == {("hidden", 64), ("block", 1)}
    assert any("lm_head shares its weights" in note for note in notes)
