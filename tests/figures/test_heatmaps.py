import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from attention_zoo.tasks.views.attention_record import AttentionRecord
from attention_zoo.tasks.views.figures.heatmaps import draw_heatmaps, draw_layers
from attention_zoo.tasks.views.figures.style import save_png

SOURCE = ["Wed", "nesday", ",", " March", " 4", ",", " 2026", "⟨eos⟩"]
TARGET = ["⟨bos⟩", "quarta", "-feira", ",", " 4", " de", " mar", "ço", " de", " 2026"]


def create_record(heads=4, source=SOURCE, target=TARGET, layers=2):
    torch.manual_seed(0)
    q, k = len(target), len(source)
    return AttentionRecord(
        source,
        target,
        {
            "cross": [torch.randn(heads, q, k).softmax(-1) for _ in range(layers)],
            "decoder": [torch.randn(heads, q, q).softmax(-1) for _ in range(layers)],
        },
    )


def panels(figure):
    return [axis for axis in figure.axes if axis.images]


def values(axis):
    return axis.images[0].get_array()


@pytest.mark.parametrize("heads", [1, 2, 4, 8])
def test_the_mean_comes_first_and_every_head_follows(heads):
    record = create_record(heads)
    axes = panels(draw_heatmaps(record, "cross", 1))
    weights = record.maps["cross"][1]
    expected = [weights.mean(0), *weights] if heads > 1 else list(weights)
    assert len(axes) == len(expected)
    for axis, panel in zip(axes, expected, strict=True):
        assert torch.equal(torch.tensor(values(axis)), panel)


def test_chosen_heads_are_drawn_alone():
    record = create_record(4)
    axes = panels(draw_heatmaps(record, "cross", 1, heads=[3, 0]))
    assert [axis.get_title() for axis in axes] == ["head 3", "head 0"]
    for axis, head in zip(axes, [3, 0], strict=True):
        assert torch.equal(torch.tensor(values(axis)), record.maps["cross"][1][head])
    with pytest.raises(ValueError, match=r"heads must lie between 0 and 3, got \[4\]"):
        draw_heatmaps(record, "cross", 1, heads=[0, 4])


def save(figure):
    file = io.BytesIO()
    save_png(figure, file)
    return np.asarray(Image.open(file))


def titles_are_apart(figure):
    lowest = figure._suptitle.get_window_extent().y0
    return all(axis.title.get_window_extent().y1 <= lowest for axis in panels(figure))


def test_layers_that_share_a_figure_are_drawn_as_each_alone():
    record = create_record(layers=5)
    record.maps["cross"][1] = record.maps["cross"][1][:2]  # fewer heads
    record.maps["cross"][3] = record.maps["cross"][3] - 10.0  # wider numbers at the bar
    seen = []
    for layer, figure in enumerate(draw_layers(record, "cross", range(5))):
        save(figure)
        alone = draw_heatmaps(record, "cross", layer)
        assert figure.get_suptitle() == alone.get_suptitle()
        for axis, expected in zip(panels(figure), panels(alone), strict=True):
            assert np.array_equal(values(axis), values(expected))
            image, other = axis.images[0], expected.images[0]
            assert (image.get_clim(), image.cmap) == (other.get_clim(), other.cmap)
        # The name of the bar is to the right of its numbers, of those that it shows.
        bar, (low, high) = figure.axes[-1], image.get_clim()
        numbers = [x for x in bar.get_yticklabels() if low <= x.get_position()[1] <= high]
        name = bar.yaxis.label.get_window_extent()
        assert max(x.get_window_extent().x1 for x in numbers) <= name.x0
        assert name.x1 <= figure.bbox.x1
        assert titles_are_apart(figure)
        seen.append(figure)
    assert [seen.index(figure) for figure in seen] == [0, 1, 2, 2, 2]


def test_a_picture_is_that_of_matplotlib():
    figure = draw_heatmaps(create_record(), "cross", 0)
    file = io.BytesIO()
    figure.savefig(file)
    assert np.array_equal(
        save(draw_heatmaps(create_record(), "cross", 0)), np.asarray(Image.open(file))
    )


def test_all_panels_share_one_scale():
    axes = panels(draw_heatmaps(create_record(), "cross", 0))
    assert len({axis.images[0].get_clim() for axis in axes}) == 1


def test_weights_with_signs_are_shown_around_zero():
    record = create_record()
    record.maps["cross"][0][1, 2, 3] = -2.0
    images = [axis.images[0] for axis in panels(draw_heatmaps(record, "cross", 0))]
    assert {image.get_clim() for image in images} == {(-2.0, 2.0)}
    assert {image.get_cmap().name for image in images} == {"PuOr"}


def test_keys_run_along_x_and_queries_down_y():
    figure = draw_heatmaps(create_record(), "cross", 0)
    first = panels(figure)[0]
    assert [label.get_text() for label in first.get_yticklabels()] == [t.strip() for t in TARGET]
    last = panels(figure)[-1]
    assert [label.get_text() for label in last.get_xticklabels()] == [t.strip() for t in SOURCE]
    assert "source" in figure.get_supxlabel()
    assert "target" in figure.get_supylabel()
    assert figure.get_suptitle() == "Cross-attention, layer 0 of 0–1"


def test_a_language_model_attends_to_itself():
    figure = draw_heatmaps(create_record(source=[]), "decoder", 0)
    assert "target" in figure.get_supxlabel()


@pytest.mark.parametrize(
    ("count", "heads"), [(2, [0]), (5, None), (12, None), (40, None), (150, None)]
)
def test_no_text_is_cut_and_no_two_labels_overlap(count, heads):
    words = [f"{'çãœжэльюшкы'[i % 9 :]}{i}" for i in range(count)]
    figure = draw_heatmaps(create_record(3, words, words), "decoder", 0, heads)
    figure.canvas.draw()
    page = figure.bbox
    for axis in panels(figure):
        for labels in (axis.get_xticklabels(), axis.get_yticklabels()):
            boxes = [label.get_window_extent() for label in labels if label.get_text()]
            for box in boxes:
                assert page.x0 <= box.x0 and box.x1 <= page.x1
                assert page.y0 <= box.y0 and box.y1 <= page.y1
            for one, other in itertools.pairwise(boxes):
                assert not one.overlaps(other)
    for text in (figure._suptitle, figure._supxlabel, figure._supylabel):
        box = text.get_window_extent()
        assert page.x0 <= box.x0 and box.x1 <= page.x1
        assert page.y0 <= box.y0 and box.y1 <= page.y1


@pytest.mark.parametrize(
    ("token", "label"),
    [
        (" de", "de"),
        ("quarta-feira-à-noite", "quarta-feira-…"),
        ("$5$", "$5$"),
        ("\n", "\\n"),
        (" ", " "),
        ("среда", "среда"),
        ("\U0001f99c", "\N{WHITE SQUARE}"),
    ],
)
def test_labels_are_short_and_can_be_shown(token, label):
    tokens = [token, "a"]
    figure = draw_heatmaps(create_record(1, tokens, tokens), "cross", 0)
    figure.savefig(io.BytesIO(), format="png")  # a missing glyph would warn
    shown_label = panels(figure)[0].get_yticklabels()[0]
    assert shown_label.get_text() == label
    assert not shown_label.get_parse_math()  # dollars are not formulas


def test_figures_leave_no_global_state():
    import matplotlib._pylab_helpers

    draw_heatmaps(create_record(), "cross", 0)
    assert not matplotlib._pylab_helpers.Gcf.figs


@pytest.mark.parametrize(
    ("role", "layer", "message"),
    [("encoder", 0, "cross, decoder"), ("cross", 2, "between 0 and 1"), ("cross", -1, "got -1")],
)
def test_unknown_roles_and_layers_are_refused(role, layer, message):
    with pytest.raises(ValueError, match=message):
        draw_heatmaps(create_record(), role, layer)


def test_a_map_that_does_not_fit_its_tokens_is_refused():
    record = create_record()._replace(source_tokens=SOURCE[:-1])
    with pytest.raises(ValueError, match=r"\[heads 10 7\].*\[4, 10, 8\]"):
        draw_heatmaps(record, "cross", 0)
