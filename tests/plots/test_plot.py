"""`BridgedModel.plot`: what is drawn is what the hook held, and what cannot be drawn is refused."""

import json
import re
import subprocess
import sys
from base64 import b64decode

import pytest
import torch

from ropebridge import attach
from ropebridge.extras import MissingExtra
from ropebridge.plots import PlotError, plot_patterns
from ropebridge.plots.page import quantise

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bridged(build):
    with attach(build("llama")) as bridged:
        yield bridged


def read_page(path):
    """The data of a page, and its weights (head, query, key)."""
    text = path.read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    weights = torch.frombuffer(
        bytearray(b64decode(re.search(r'id="weights">(.*?)</script>', text, re.DOTALL)[1])),
        dtype=torch.uint8,
    )
    return data, (weights.float() / 255).square().view(-1, data["queries"], data["keys"])


def test_a_page_holds_every_heads_pattern(bridged, tokens, tmp_path):
    path = plot_patterns(bridged, tokens, tmp_path / "new" / "patterns.html", row=1)
    data, weights = read_page(path)
    _, cache = bridged.run_with_cache(
        tokens, names_filter=lambda name: name.endswith("hook_pattern")
    )
    true = torch.cat([pattern[1] for pattern in cache.values()])
    assert data["heads"] == [
        [layer, head] for layer in range(2) for head in range(bridged.layers[0].variant.heads)
    ]
    assert data["tokens"] == [str(int(token)) for token in tokens[1]]
    assert (weights - true).abs().max() <= 0.004
    assert ((weights > 0) <= (true > 0)).all()


def test_chosen_heads_come_in_the_order_asked_for(bridged, tokens, tmp_path):
    data, weights = read_page(
        plot_patterns(bridged, tokens, tmp_path / "a.html", heads=[(1, 2), (0, 1)])
    )
    assert data["heads"] == [[1, 2], [0, 1]]
    assert weights.shape == (2, 12, 12)
    assert read_page(plot_patterns(bridged, tokens, tmp_path / "b.html", layers=[1], heads=[0, 3]))[
        0
    ]["heads"] == [[1, 0], [1, 3]]


def test_a_byte_keeps_a_weight_as_closely_as_is_said():
    weights = torch.linspace(0, 1, 100_001)
    error = ((quantise(weights).float() / 255).square() - weights).abs()
    assert 0.0035 < error.max() <= 0.004
    assert error[weights < 2e-5].max() <= 2e-5
    assert quantise(torch.tensor([0.0, 1e-4, 1.0])).tolist() == [0, 3, 255]


@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
def test_a_picture_is_written(bridged, tokens, tmp_path, ending):
    path = plot_patterns(
        bridged,
        tokens,
        tmp_path / f"patterns{ending}",
        layers=[0],
        tokens=["$a$", *"bcdefghijkl"],
    )
    assert path.read_bytes()[:4] == {".png": b"\x89PNG", ".svg": b"<?xm", ".pdf": b"%PDF"}[ending]


def test_a_picture_shows_the_weights_of_its_heads(panels):
    from matplotlib.figure import Figure

    from ropebridge.plots.picture import draw

    axis = Figure().subplots()
    image = draw(axis, panels[1], list("abcde"))
    assert image.get_array().tolist() == panels[1].pattern.tolist()
    assert axis.get_title() == "layer 0, head 1"
    assert [label.get_text() for label in axis.get_xticklabels()] == list("abcde")
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("key", "query")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "p.gif",
            {},
            "'p.gif' ends in '.gif'; the ending says what is written: .html, .png, .svg, .pdf",
        ),
        ("p", {}, "'p' ends in 'nothing'"),
        ("p.html", {"row": 2}, "row=2 is not in the batch; it has 2 rows, counted from 0"),
        (
            "p.html",
            {"layers": [2]},
            (
                "there is no head 0 in layer 2; the model has 2 layers, of [6, 6] heads, both"
                " counted from 0"
            ),
        ),
        ("p.html", {"heads": [(0, 6)]}, "there is no head 6 in layer 0"),
        (
            "p.html",
            {"heads": []},
            "no head is chosen; pass layers= and heads= of a model with 2 layers, of [6, 6] heads",
        ),
        (
            "p.html",
            {"tokens": ["a"]},
            (
                "1 tokens were given for 12 keys; pass those of row 0:"
                " tokens=tokenizer.convert_ids_to_tokens(ids[0])"
            ),
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(bridged, tokens, tmp_path, name, options, message):
    with pytest.raises(PlotError, match=re.escape(message)):
        plot_patterns(bridged, tokens, tmp_path / name, **options)


def test_text_is_no_input(bridged, tmp_path):
    with pytest.raises(PlotError, match=r"inputs are 'a text'; they must be token ids"):
        plot_patterns(bridged, "a text", tmp_path / "page.html")


def test_embeddings_instead_of_ids_are_numbered(bridged, tokens, tmp_path):
    embedded = bridged.model.get_input_embeddings().weight[None, :3].detach()
    data, _ = read_page(plot_patterns(bridged, {"inputs_embeds": embedded}, tmp_path / "p.html"))
    assert data["tokens"] == ["0", "1", "2"]


@pytest.mark.parametrize(("name", "package"), [("p.png", "matplotlib"), ("p.html", "jinja2")])
def test_without_its_extra_a_plot_says_how_to_install_it(
    bridged, tokens, bar, tmp_path, name, package
):
    bar(package)
    message = f"needs {package}, which the extra brings: pip install 'ropebridge[plot]'"
    with pytest.raises(MissingExtra, match=re.escape(message)):
        plot_patterns(bridged, tokens[:1], tmp_path / name)


@pytest.mark.every
def test_importing_the_bridge_brings_no_plotting_along():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            (
                "import sys, ropebridge; print(sorted({'matplotlib', 'ropebridge.plots'} &"
                " set(sys.modules)))"
            ),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "[]", done.stderr
