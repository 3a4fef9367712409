import gzip
import json

import pytest

from export.errors import InvalidSymbol
from export.symbols.graph import Entry, Node, parse_symbol, read_symbol, write_symbol

CONVOLUTION = {"kernel": "(3, 3)", "num_filter": "4"}


def document(**changes):
    nodes = [
        {"op": "null", "name": "data", "inputs": []},
        {"op": "null", "name": "conv_weight", "attrs": {"__shape__": "(4, 0, 3, 3)"}, "inputs": []},
        {
            "op": "Convolution",
            "name": "conv",
            "attrs": CONVOLUTION,
            "inputs": [[0, 0, 0], [1, 0, 0]],
        },
    ]
    return {"nodes": nodes, "arg_nodes": [0, 1], "heads": [[2, 0, 0]], **changes}


def parse(value):
    return parse_symbol(json.dumps(value).encode(), "net.json")


def test_reads_nodes_heads_and_attributes():
    graph = parse(document())
    assert [n.op for n in graph.nodes] == ["null", "null", "Convolution"]
    assert graph.heads == (Entry(2),)
    assert graph.nodes[2].integers("kernel") == (3, 3)
    assert graph.nodes[2].inputs == (Entry(0), Entry(1))


@pytest.mark.parametrize("key", ["attr", "param", "attrs"])
def test_reads_the_three_names_of_attributes(key):
    value = document()
    value["nodes"][2][key] = value["nodes"][2].pop("attrs")
    assert parse(value).nodes[2].integers("kernel") == (3, 3)


def test_reads_two_element_entries():
    value = document(heads=[[2, 0]])
    value["nodes"][2]["inputs"] = [[0, 0], [1, 0]]
    assert parse(value) == parse(document())


def test_completes_the_batch_norm_of_0_8():
    nodes = [
        {"op": "null", "param": {}, "name": "data", "inputs": [], "backward_source_id": -1},
        {"op": "null", "param": {}, "name": "bn_gamma", "inputs": [], "backward_source_id": -1},
        {"op": "null", "param": {}, "name": "bn_beta", "inputs": [], "backward_source_id": -1},
        {"op": "BatchNorm", "param": {"eps": "0.001"}, "name": "bn",
         "inputs": [[0, 0], [1, 0], [2, 0]]},
        {"op": "Activation", "param": {"act_type": "relu"}, "name": "relu", "inputs": [[3, 0]]},
    ]  # fmt: skip
    graph = parse({"nodes": nodes, "arg_nodes": [0, 1, 2], "heads": [[4, 0]]})
    norm = next(n for n in graph.nodes if n.op == "BatchNorm")
    read = [graph.nodes[e.node].name for e in norm.inputs]
    assert read == ["data", "bn_gamma", "bn_beta", "bn_moving_mean", "bn_moving_var"]
    assert graph.nodes[graph.nodes[-1].inputs[0].node] is norm
    assert graph.nodes[graph.heads[0].node].name == "relu"


@pytest.mark.parametrize("suffix", ["json", "json.gz"])
def test_writes_what_it_reads(tmp_path, make_network, suffix):
    graph, path = make_network(32, 64), tmp_path / "net.json"
    write_symbol(graph, path)
    if suffix == "json.gz":
        content, path = path.read_bytes(), tmp_path / "net.json.gz"
        path.write_bytes(gzip.compress(content))
    assert read_symbol(path) == graph


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nodes": "all"}, "not a valid symbol.json"),
        ({"heads": []}, "no outputs"),
        ({"heads": [[3, 0, 0]]}, "node 3"),
        ({"heads": [[-1, 0, 0]]}, "expected \\[node"),
        ({"heads": [[True, 0, 0]]}, "expected \\[node"),
        ({"heads": [[2, 0, 0, 0]]}, "expected \\[node"),
        ({"heads": {"0": 1}}, "expected a list"),
        ({"nodes": [7]}, "node 0"),
        ({"nodes": [{"op": "null", "name": 3}]}, "must be strings"),
        ({"nodes": [{"op": "null", "name": "a", "attrs": {"x": 1}}]}, "to strings"),
        ({"nodes": [{"op": "relu", "name": "a", "inputs": [[0, 0, 0]]}]}, "does not come before"),
    ],
)
def test_refuses_damaged_symbols(change, message):
    with pytest.raises(InvalidSymbol, match=message) as caught:
        parse(document(**change))
    assert "net.json" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 200_000, b"{}", b"null", b"[1]"])
def test_refuses_other_files(content):
    with pytest.raises(InvalidSymbol, match=r"net\.json"):
        parse_symbol(content, "net.json")


def test_refuses_a_missing_or_truncated_file(tmp_path):
    with pytest.raises(InvalidSymbol, match="absent"):
        read_symbol(tmp_path / "absent.json")
    packed = tmp_path / "cut.json.gz"
    packed.write_bytes(gzip.compress(json.dumps(document()).encode())[:-12])
    with pytest.raises(InvalidSymbol, match="cut"):
        read_symbol(packed)


@pytest.mark.parametrize("text", ["__import__('os')", "(1, 'a')", "(" * 500, "1.5e", "None, 1"])
def test_attributes_are_data(text):
    with pytest.raises(InvalidSymbol, match="conv"):
        Node("Convolution", "conv", (), {"kernel": text}).integers("kernel")


def test_attribute_forms():
    node = Node("Pooling", "p", (), {"a": "[2L, 3L]", "b": "4", "c": "()", "d": "None", "e": "1"})
    assert node.integers("a") == (2, 3)
    assert node.integers("b") == (4,)
    assert node.integers("c", (1, 1)) == (1, 1)
    assert node.integers("d", (7,)) == (7,)
    assert node.flag("e", False)
    assert node.number("absent", 0.5) == 0.5
