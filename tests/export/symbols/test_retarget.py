import pytest

from export.errors import IllegalSize, InvalidSymbol
from export.symbols.find import PUBLISHED, FoundSymbol, own_size
from export.symbols.graph import read_symbol
from export.symbols.sizes import retarget, size_rule

GENERATE = """
import sys
from dataclasses import replace
from pathlib import Path
from benchmarks.studies.generate_symbols import NETWORKS, trace
for argument in sys.argv[2:]:
    name, height, width = argument.split(":")
    network = replace(NETWORKS[name], height=int(height), width=int(width))
    Path(sys.argv[1], f"{name}_{height}x{width}.json").write_text(trace(network))
"""
MOVES = [
    ("icnet_resnet50_citys", 64, 96),
    ("icnet_resnet50_citys", 736, 992),
    ("icnet_resnet50_mhpv1", 480, 480),
    ("pspnet_resnet50_citys", 712, 72),
    ("deeplab_resnet50_citys", 88, 480),
    ("fcn_resnet50_citys", 53, 97),
]


@pytest.fixture(scope="module")
def generated(tmp_path_factory, run_mxnet):
    folder = tmp_path_factory.mktemp("generated")
    run_mxnet("-c", GENERATE, folder, *(f"{n}:{h}:{w}" for n, h, w in MOVES))
    return folder


@pytest.mark.parametrize(("name", "height", "width"), MOVES)
def test_equals_a_symbol_generated_at_that_size(generated, name, height, width):
    moved = retarget(read_symbol(PUBLISHED / f"{name}.json.gz"), height, width)
    assert moved == read_symbol(generated / f"{name}_{height}x{width}.json")


def test_there_and_back_is_nothing():
    graph = read_symbol(PUBLISHED / "icnet_resnet50_citys.json.gz")
    moved = retarget(graph, 480, 640)
    assert moved != graph
    assert retarget(moved, 1024, 2048) == graph
    assert retarget(graph, 1024, 2048) is graph


@pytest.mark.parametrize(
    ("size", "nearest"),
    [
        ((1000, 2048), "992x2048"),
        ((1024, 2050), "1024x2048"),
        ((8, 8), "32x32"),
        ((0, 64), "32x64"),
    ],
)
def test_illegal_sizes_name_the_nearest_legal_one(size, nearest):
    graph = read_symbol(PUBLISHED / "icnet_resnet50_citys.json.gz")
    with pytest.raises(IllegalSize, match=f"multiple of 32.*{nearest}"):
        retarget(graph, *size)


def test_a_symbol_of_an_odd_size_stays_there(writer):
    small = writer.resize("third", 0, 33, 33)
    graph = writer.graph(writer.resize("full", small, 100, 100))
    assert retarget(graph, 100, 100) is graph
    with pytest.raises(IllegalSize, match=r"third \(33x33\).*generate it"):
        retarget(graph, 200, 200)


def test_a_symbol_without_its_full_size_output_is_refused(writer):
    graph = writer.graph(writer.convolution("conv", writer.resize("half", 0, 16, 16), 4))
    with pytest.raises(IllegalSize, match="conv"):
        retarget(graph, 64, 64)


def test_a_symbol_without_resizes_fits_every_size(writer):
    graph = writer.graph(writer.convolution("conv", 0, 4))
    assert size_rule(graph) is None
    assert retarget(graph, 17, 23) is graph


def test_feature_maps_that_no_longer_meet_are_refused(writer):
    # At 36: a quarter is 9, pooled 4; the stride of eight leaves 5.
    quarter = writer.resize("quarter", 0, 8, 8)
    pooled = writer.add("Pooling", "pool", quarter, kernel="(2, 2)", stride="(2, 2)")
    strided = writer.convolution("conv", 0, 3, stride=(8, 8))
    meet = writer.add("elemwise_add", "meet", pooled, strided)
    graph = writer.graph(writer.resize("full", meet, 32, 32))
    assert retarget(graph, 48, 64) != graph
    with pytest.raises(InvalidSymbol, match="meet"):
        retarget(graph, 36, 32)


def test_a_symbol_that_cannot_move_tells_its_own_size(writer):
    """Networks of sizes like 65x97, a multiple plus one."""
    small = writer.resize("small", writer.convolution("base", 0, 4), 17, 25)
    score = writer.convolution("score", small, 5, 1)
    found = FoundSymbol(writer.graph(writer.resize("full", score, 65, 97)), "a test")
    assert own_size(found) == (65, 97)
    assert retarget(found.graph, 65, 97) == found.graph
    with pytest.raises(IllegalSize, match="cannot be moved to another size"):
        retarget(found.graph, 64, 96)
