import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.palette import (
    IGNORE_COLOR,
    datasets,
    default_palette,
    format_palette,
    label_type,
    largest_id,
    load_labels,
    parse_palette,
    plte,
    read_labels,
)

colors = st.lists(st.tuples(*[st.integers(0, 255)] * 3), max_size=255)


@pytest.mark.parametrize(
    ("dataset", "count"),
    [("camvid", 11), ("citys", 19), ("pascal_voc", 21), ("ade20k", 150), ("mhpv1", 19)],
)
def test_known_datasets(dataset, count):
    labels = load_labels(dataset)
    assert len(labels.names) == len(set(labels.names)) == len(labels.colors) == count
    assert labels.ignore_label == 255
    assert all(name == name.strip() and name for name in labels.names)
    assert all(0 <= channel <= 255 for color in labels.colors for channel in color)


def test_every_data_file_has_a_test_above():
    assert datasets() == ("ade20k", "camvid", "citys", "mhpv1", "pascal_voc")


def test_cityscapes_sky_has_the_colour_of_its_own_scripts():
    labels = load_labels("citys")
    assert labels.colors[labels.names.index("sky")] == (70, 130, 180)
    assert labels.names[0] == "road"
    assert labels.names[18] == "bicycle"


@pytest.mark.parametrize(
    ("alias", "dataset"), [("cityscapes", "citys"), ("mhp", "mhpv1"), ("voc", "pascal_voc")]
)
def test_aliases(alias, dataset):
    assert load_labels(alias) == load_labels(dataset)


@pytest.mark.parametrize("dataset", ["", "../citys", "nothing"])
def test_an_unknown_dataset_is_refused_with_the_known_ones(dataset):
    with pytest.raises(ValueError, match=r"ade20k, camvid, citys, .*cityscapes"):
        load_labels(dataset)


def test_the_default_palette_is_that_of_pascal_voc():
    assert default_palette(21) == load_labels("pascal_voc").colors
    assert default_palette(256)[255] == IGNORE_COLOR
    assert len(set(default_palette(65_536))) == 65_536
    with pytest.raises(ValueError, match="65537"):
        default_palette(65_537)


@pytest.mark.parametrize(
    ("classes", "kind", "ignored"), [(255, "uint8", 255), (256, "uint16", 65535)]
)
def test_label_maps_are_as_wide_as_their_classes_need(classes, kind, ignored, tmp_path):
    assert (label_type(classes), largest_id(classes)) == (kind, ignored)
    (tmp_path / "names.txt").write_text("".join(f"{i}\n" for i in range(classes)))
    assert read_labels(tmp_path / "names.txt").ignore_label == ignored


@given(colors)
def test_a_palette_survives_its_text(palette):
    assert parse_palette(format_palette(palette)) == tuple(palette)


def test_palette_text():
    assert parse_palette(" #804080\n#F423e8 ") == ((128, 64, 128), (244, 35, 232))
    assert parse_palette("") == ()


@pytest.mark.parametrize("word", ["804080", "#80408", "#80408g", "#8040800", "#804080,#000000"])
def test_a_word_that_is_no_colour_is_refused(word):
    with pytest.raises(ValueError, match=word):
        parse_palette(f"#000000 {word}")


@given(colors)
def test_plte_holds_the_colours_then_black_then_the_ignore_colour(palette):
    table = plte(palette, 255)
    triples = [tuple(table[k : k + 3]) for k in range(0, 768, 3)]
    assert triples[: len(palette)] == palette
    assert all(triple == (0, 0, 0) for triple in triples[len(palette) : 255])
    assert triples[255] == IGNORE_COLOR


def test_a_class_keeps_its_colour_where_it_is_the_ignore_label():
    assert plte([(1, 2, 3)], 0)[:3] == b"\1\2\3"
    assert plte([(1, 2, 3)], -1)[3:] == bytes(765)
    with pytest.raises(ValueError, match="257"):
        plte([(0, 0, 0)] * 257, 255)
