"""Files that lie: whatever is in them, the answer is a model or a named error, in little memory."""

import gzip
import json
import tracemalloc

import numpy as np
import pytest

from export.errors import ExportError, InvalidParams, InvalidSymbol
from export.lowering.convert import convert
from export.passes.build import build_model
from export.symbols.graph import Entry, read_symbol, write_symbol
from export.symbols.params import Parameters, random_params, read_params, write_params

SIZE = (32, 64)
MEGABYTE = 1 << 20


@pytest.fixture
def peak():
    """Bytes that Python and NumPy held at most since the test began."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


def mutations(content, count, seed):
    """Copies with some bytes changed, mostly at the beginning, where the lengths are."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        changed = bytearray(content)
        end = len(content) if random.random() < 0.5 else min(400, len(content))
        for place in random.integers(0, end, random.integers(1, 6)):
            changed[place] = random.choice([0, 1, 127, 255, random.integers(0, 256)])
        yield bytes(changed)


def test_changed_parameters_are_read_or_refused(tmp_path, make_network, make_params, peak):
    path = tmp_path / "net.params"
    write_params(make_params(make_network(*SIZE), *SIZE), path)
    content = path.read_bytes()
    refused = 0
    for changed in mutations(content, 300, seed=1):
        path.write_bytes(changed)
        try:
            read_params(path)
        except InvalidParams:
            refused += 1
    assert refused > 50
    assert peak() < 4 * MEGABYTE


def test_changed_symbols_are_built_or_refused(tmp_path, make_network, make_params):
    graph = make_network(*SIZE)
    parameters = make_params(graph, *SIZE)
    path = tmp_path / "net-symbol.json"
    write_symbol(graph, path)
    content = path.read_bytes()
    refused = 0
    for changed in mutations(content, 150, seed=2):
        path.write_bytes(changed)
        try:
            build_model(read_symbol(path), parameters, *SIZE)
        except ExportError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("num_filter", "1000000000000"),
        ("num_filter", "-1"),
        ("kernel", "(1000000000, 1000000000)"),
        ("stride", "(0, 0)"),
        ("pad", "(1000000000, 1000000000)"),
        ("dilate", "(-3, 1)"),
        ("num_group", "0"),
        ("num_filter", "8000000000"),
    ],
)
def test_absurd_attributes_are_refused(tmp_path, make_network, make_params, peak, attribute, value):
    graph = make_network(*SIZE)
    parameters = make_params(graph, *SIZE)
    path = tmp_path / "net-symbol.json"
    write_symbol(graph, path)
    document = json.loads(path.read_text())
    node = next(n for n in document["nodes"] if n["name"] == "small_conv")
    node.setdefault("attrs", node.pop("attr", {}))[attribute] = value
    path.write_text(json.dumps(document))
    with pytest.raises(ExportError):
        build_model(read_symbol(path), parameters, *SIZE)
    assert peak() < 80 * MEGABYTE  # what a symbol.json may have at most, and little else


def test_a_gzip_bomb_is_refused(tmp_path, peak):
    path = tmp_path / "net-symbol.json.gz"
    with gzip.open(path, "wb") as file:
        for _ in range(100):
            file.write(b" " * MEGABYTE)
    assert path.stat().st_size < MEGABYTE
    with pytest.raises(InvalidSymbol, match="more than"):
        read_symbol(path)
    assert peak() < 200 * MEGABYTE


def test_several_heads_give_the_first(tmp_path, make_network, make_params, run_onnx):
    graph = make_network(*SIZE)
    parameters = make_params(graph, *SIZE)
    assert len(graph.heads) == 3
    alone = type(graph)(graph.nodes, graph.heads[:1])
    image = np.random.default_rng(0).integers(0, 256, (1, *SIZE, 3), dtype=np.uint8)
    outputs = []
    for number, each in enumerate((graph, alone)):
        path = tmp_path / f"{number}.json"
        write_symbol(each, path)
        outputs.append(run_onnx(build_model(read_symbol(path), parameters, *SIZE), image))
    for several, one in zip(*outputs, strict=True):
        np.testing.assert_array_equal(several, one)


def test_a_head_that_no_node_has_is_refused(make_network, make_params):
    graph = make_network(*SIZE)
    wrong = type(graph)(graph.nodes, (Entry(graph.heads[0].node, 5),))
    with pytest.raises(ExportError):
        build_model(wrong, make_params(graph, *SIZE), *SIZE)


def test_nothing_is_allocated_for_absurd_parameters(writer, peak):
    """Of one pixel, so that no map is large: only the random weights would be."""
    pooled = writer.add("_contrib_AdaptiveAvgPooling2D", "pool", 0, output_size=1)
    wide = writer.convolution("wide", pooled, 1 << 28, kernel=1)
    graph = writer.graph(wide)
    with pytest.raises(InvalidSymbol, match="parameters, more than the 536870912"):
        random_params(graph, *SIZE)
    assert peak() < MEGABYTE


def test_nothing_is_allocated_for_absurd_maps_and_bins(writer, peak):
    base = writer.convolution("base", 0, 1)
    large = writer.resize("large", base, 80_000, 80_000)
    graph = writer.graph(writer.add("Pooling", "pool", large, kernel=(2, 2), pool_type="avg"))
    with pytest.raises(InvalidSymbol, match=r"large .* map of over"):
        convert(graph, Parameters({}, {}), *SIZE)
    bins = writer.add("_contrib_AdaptiveAvgPooling2D", "bins", base, output_size=(1, 1 << 25))
    graph = writer.graph(bins).pruned([Entry(bins)])
    with pytest.raises(ExportError, match="bins"):
        convert(graph, random_params(graph, *SIZE), *SIZE)
    assert peak() < MEGABYTE
