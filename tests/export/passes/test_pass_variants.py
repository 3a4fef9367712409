"""``benchmarks.studies.passes`` compares two ways to the same, and its table keeps its order."""

import numpy as np
import pytest

from benchmarks.studies.passes import COMPARISONS, put_row
from benchmarks.studies.rewrites import ADAPTIVE, Subject, average_by_bins, make_pair

SIZE = (64, 96)
EXACT = sorted({comparison.rewrite for comparison in COMPARISONS})


@pytest.fixture
def subject(make_network, make_params):
    graph = make_network(*SIZE)
    image = np.random.default_rng(5).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    return Subject(graph, make_params(graph, *SIZE), SIZE, image)


@pytest.mark.parametrize("rewrite", EXACT)
def test_both_sides_give_the_same(rewrite, subject, make_deformable_network, make_params):
    if rewrite == "sample_deformable":
        graph = make_deformable_network(*SIZE)
        subject = Subject(graph, make_params(graph, *SIZE), SIZE, subject.image)
    pair = make_pair(rewrite, subject)
    without, with_it = pair.without(), pair.with_it()
    assert without.shape == with_it.shape
    assert without.dtype == with_it.dtype
    if with_it.dtype == np.uint8:
        assert len(np.unique(with_it)) > 1
        assert (without == with_it).mean() >= 0.9999
    else:
        assert np.abs(without - with_it).max() <= 1e-5 * np.abs(without).max()


def test_bins_replace_the_products(subject):
    model = subject.build()
    assert average_by_bins(model) == 1
    kinds = [node.op_type for node in model.graph.node if "bin" in "".join(node.output)]
    assert kinds.count("Slice") == kinds.count("ReduceMean") == 9
    assert not [node for node in model.graph.node if "_pooled_columns" in "".join(node.input)]
    assert average_by_bins(model) == 0


def test_rows_keep_the_order_of_the_comparisons(tmp_path):
    page = tmp_path / "export.md"
    page.write_text("Words.\n\n<!-- passes -->\n| pass |\n|---|\n<!-- end -->\nMore.\n")
    later = f"| `{ADAPTIVE}` | pspnet_resnet50 | 352x480 | 2 ms |"
    first = "| `prune_heads` | pspnet_resnet50_aux | 352x480 | 3 ms |"
    put_row(page, later)
    put_row(page, first.replace("3 ms", "9 ms"))
    put_row(page, first)
    assert page.read_text().splitlines() == [
        "Words.", "", "<!-- passes -->", "| pass |", "|---|", first, later, "<!-- end -->", "More."
    ]  # fmt: skip
