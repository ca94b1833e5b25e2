"""What the drawing functions draw, read back from the artists."""
import base64
import html
import io
import re
from unittest.mock import patch

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.animation import FuncAnimation
from matplotlib.colors import to_hex, to_rgba
from numpy.testing import assert_allclose
from PIL import Image

from amtutorial import figures
from amtutorial.figures import (
    CMAP,
    LINES,
    MEMORY,
    MINIMUM,
    animation_html,
    energy_colorbar,
    plot_energy,
    plot_energy_surface_3d,
    plot_field,
    plot_memories,
    plot_minima,
    plot_plane,
    plot_samples,
    save_figure,
    use_style,
)

SIX = np.stack([np.cos(np.arange(6)), np.sin(np.arange(6))], 1)


@pytest.fixture(autouse=True)
def own_style():
    "The look of figures is left as it was found, and no figure stays open."
    with plt.rc_context():
        yield
    plt.close("all")


@pytest.fixture
def ax():
    return plt.subplots()[1]


@pytest.fixture
def ax3():
    return plt.subplots(subplot_kw=dict(projection="3d"))[1]


def bowl(n=61, bound=1.5):
    "A grid, and a bowl with a ring-shaped floor."
    axis = np.linspace(-bound, bound, n)
    X, Y = np.meshgrid(axis, axis, indexing="ij")
    return X, Y, (np.hypot(X, Y) - 1) ** 2


def test_style():
    use_style()
    cycle = plt.rcParams["axes.prop_cycle"].by_key()["color"]
    assert [to_hex(c).upper() for c in cycle] == LINES
    assert plt.rcParams["figure.constrained_layout.use"] and not plt.rcParams["legend.frameon"]


def test_colours_can_be_told_apart():
    "By their lightness or their hue: no two are near each other."
    rgb = np.array([to_rgba(c)[:3] for c in LINES])
    gaps = np.linalg.norm(rgb[:, None] - rgb, axis=-1) + np.eye(len(LINES))
    assert gaps.min() > 0.25


def test_colour_map_grows_in_lightness():
    rgb = matplotlib.colormaps[CMAP](np.linspace(0, 1, 64))[:, :3]
    assert (np.diff(rgb @ [0.2126, 0.7152, 0.0722]) > 0).all()


# The plane


@pytest.mark.parametrize("bound", [1.5, 1.3, 2])
def test_plane_is_a_square_window(ax, bound):
    assert plot_plane(ax, bound, "a title") is ax
    assert ax.get_xlim() == ax.get_ylim() == (-bound, bound)
    assert ax.get_aspect() == 1 and ax.get_title() == "a title"
    assert not len(ax.get_xticks()) and not len(ax.get_yticks())
    (circle,) = ax.patches
    assert circle.radius == 1 and circle.center == (0, 0) and not circle.get_fill()
    assert circle.get_linestyle() == "--" and circle.get_edgecolor()[:3] == (0.5, 0.5, 0.5)


def test_plane_without_circle(ax):
    assert not plot_plane(ax, circle=None).patches
    assert to_hex(plot_plane(ax, circle="white").patches[0].get_edgecolor()) == "#ffffff"


@pytest.mark.parametrize("kind", [np.asarray, list, torch.tensor])
def test_memories_are_stars_where_they_are(ax, kind):
    stars = plot_memories(ax, kind(SIX))
    assert_allclose(stars.get_offsets(), SIX)
    assert to_hex(stars.get_facecolor()[0]).upper() == MEMORY and stars.get_label() == "memories"
    assert len(stars.get_paths()[0].vertices) == 11  # five points, and closed
    assert stars.get_sizes() == [110]
    assert plot_memories(ax, kind(SIX), "other", size=6).get_linewidth() == [0.06]


def test_memories_in_space(ax3):
    stars = plot_memories(ax3, np.c_[SIX, np.arange(6)])
    assert_allclose(np.stack(stars._offsets3d, 1), np.c_[SIX, np.arange(6)])


@pytest.mark.parametrize("K, stars", [(6, 1), (100, 1), (101, 0)])
def test_samples_lie_over_few_memories(ax, K, stars):
    xi = np.resize(SIX, (K, 2))
    dots = plot_samples(ax, torch.tensor(SIX[:4]), xi)
    assert_allclose(dots.get_offsets(), SIX[:4])
    assert len(ax.collections) == 1 + stars and ax.get_title() == f"K = {K}"
    assert ax.get_xlim() == (-1.3, 1.3)
    if stars:
        assert dots.get_zorder() > ax.collections[0].get_zorder()


def test_thousands_are_separated(ax):
    plot_samples(ax, SIX, np.resize(SIX, (1000, 2)), bound=2)
    assert ax.get_title() == "K = 1,000" and ax.get_ylim() == (-2, 2)


def test_rings_and_diamonds(ax):
    "A ring around one memory (N_eff below 1.5), a diamond where several share a minimum."
    n_eff = [1.0, 1.49, 1.5, 2.0, 4.1, 1.2]
    plot_minima(ax, torch.tensor(SIX), torch.tensor(n_eff), size=50)
    ring, diamond = ax.collections
    assert_allclose(ring.get_offsets(), SIX[[0, 1, 5]])
    assert_allclose(diamond.get_offsets(), SIX[[2, 3, 4]])
    assert len(diamond.get_paths()[0].vertices) == 5  # a square on its corner
    assert len(ring.get_paths()[0].vertices) > 8
    for mark in (ring, diamond):
        assert to_hex(mark.get_edgecolor()[0]).upper() == MINIMUM and mark.get_sizes() == [50]
        assert mark.get_facecolor().size == 0 or mark.get_facecolor()[0, 3] == 0
    assert [m.get_label() for m in (ring, diamond)] == ["minimum: a memory", "minimum: a mixture"]


def test_no_minima(ax):
    plot_minima(ax, np.zeros((0, 2)), np.zeros(0))
    assert [len(c.get_offsets()) for c in ax.collections] == [0, 0]


# Energies


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
def test_energy_scale(ax, kind):
    m = plot_energy(ax, *map(kind, bowl()))
    assert m.get_clim() == (0, 8) and m.extend == "max" and len(m.levels) == 41
    assert m.get_cmap().name.startswith(CMAP)
    assert plot_energy(ax, *bowl(), vmax=1).get_clim() == (0, 1)


def test_scale_with_both_signs(ax):
    m = plot_energy(ax, *bowl(), 0.5, -0.5, "RdBu_r")
    assert m.get_clim() == (-0.5, 0.5) and m.extend == "both" and m.get_cmap().name == "RdBu_r"


def test_the_first_axis_runs_to_the_right(ax):
    "An energy that grows with x is bright on the right."
    X, Y, _ = bowl()
    plot_energy(ax, X, Y, X + 1.5, vmax=3)
    ax.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), position=[0, 0, 1, 1])
    ax.figure.canvas.draw()
    light = np.asarray(ax.figure.canvas.buffer_rgba())[..., :3].mean(-1)
    assert (np.diff(light[100, 10:-10:60]) > 0).all() and np.ptp(light[50:-50, 300]) < 5


def test_colour_bar(ax):
    fig = ax.figure
    m = plot_energy(ax, *bowl(), vmax=1)
    bar = energy_colorbar(fig, m, ax)
    assert bar.ax.get_ylabel() == "energy above the minimum (nats)" and bar.extend == "max"
    assert 3 <= len(bar.get_ticks()) <= 6
    bar = energy_colorbar(fig, m, [ax], "difference", ticks=[0, 1], shrink=0.3)
    assert bar.get_ticks().tolist() == [0, 1] and bar.ax.get_ylabel() == "difference"


def test_arrows_have_unit_length_and_the_field_s_direction(ax):
    X, Y, _ = bowl()
    field = np.stack([-3 * X, -3 * Y], -1) * np.exp(5 * X)[..., None]  # very different lengths
    q = plot_field(ax, X, Y, field, stride=10, color="red")
    where, arrow = np.stack([q.X, q.Y], 1), np.stack([q.U, q.V], 1)
    assert len(where) == 36 and to_hex(q.get_facecolor()[0]) == "#ff0000"
    assert_allclose(np.hypot(*arrow.T), 1, rtol=1e-12)
    assert_allclose(arrow, -where / np.hypot(*where.T)[:, None], atol=1e-12)
    assert_allclose(where.reshape(6, 6, 2)[:, 0, 0], X[5::10, 0])


def test_a_field_that_vanishes(ax):
    q = plot_field(ax, *map(torch.tensor, bowl(13)[:2]), torch.zeros(13, 13, 2))
    assert (np.hypot(q.U, q.V) == 0).all()


def drawn_surface(ax3, *args, **kwargs):
    "What `plot_energy_surface_3d` returns, and the heights that it drew."
    with patch.object(ax3, "plot_surface", wraps=ax3.plot_surface) as draw:
        surface = plot_energy_surface_3d(None, ax3, *args, **kwargs)
    return surface, draw.call_args[0][2]


def test_surface(ax3):
    X, Y, E = bowl(31)
    surface, z = drawn_surface(ax3, X, Y, 10 * E, view_angle=(30, 45), title="a bowl")
    assert (ax3.elev, ax3.azim) == (30, 45) and ax3.get_title(loc="left") == "a bowl"
    assert_allclose(z, 10 * E)
    assert surface.get_array().size == 30 * 30 and surface.get_array().max() > 9
    assert ax3.get_zlim()[1] > 12  # nothing is cut
    assert surface.get_cmap().name.startswith(CMAP)
    assert not any(len(a.get_ticklocs()) for a in (ax3.xaxis, ax3.yaxis, ax3.zaxis))


def test_surface_that_is_cut(ax3):
    X, Y, E = map(torch.tensor, bowl(31))
    surface, z = drawn_surface(ax3, X, Y, 10 * E, vmax=8)
    assert z.max() == 8 and surface.get_clim() == (0, 8) and ax3.get_zlim()[1] < 8.5
    assert_allclose(z, np.minimum(10 * E.numpy(), 8))
    assert (ax3.elev, ax3.azim) == (60, -60)
    assert E.max() * 10 > 12  # the given energy is left alone


# Animations


def dots(frames=3):
    fig, ax = plt.subplots(figsize=(1, 1), dpi=40)
    (dot,) = plot_plane(ax).plot([], [], "o")
    return FuncAnimation(fig, lambda i: dot.set_data([np.cos(i)], [np.sin(i)]), frames=frames)


def test_animation_is_the_same_at_every_run():
    a, b = (animation_html(dots(), "a dot on a circle", "a dot") for _ in range(2))
    assert a == b and a.count("data:image/png") == 3
    assert 'id="_anim_imga_dot"' in a and "max-width: 100%" in a
    assert not plt.get_fignums()


def test_names_keep_animations_apart():
    a, b = (animation_html(dots(2), "a dot", name) for name in ("one", "two"))
    ids = [set(re.findall(r'id="(\w+)"', text)) for text in (a, b)]
    assert ids[0] and not ids[0] & ids[1]


def test_no_frame_is_dropped():
    "Whatever matplotlib's limit on embedded frames, and whatever was drawn of them before."
    anim = dots(60)
    with plt.rc_context({"animation.embed_limit": 0.01}):
        assert anim.to_jshtml().count("data:image/png") < 60
        page = animation_html(anim, "a dot", fps=20)
        assert plt.rcParams["animation.embed_limit"] == 0.01
    assert page.count("data:image/png") == 60 and re.search(r"new Animation\(.*?, 50,", page, re.S)


@pytest.mark.parametrize("text", [
    'p < 1 & "so on"', "it's", "two\nlines", "a\n\nparagraph", r"\sigma \1", "a > b, &amp;"
])
def test_alternative_text_is_escaped(text):
    "It stands in one attribute on one line, and reads as it was given."
    page = animation_html(dots(2), text)
    (picture,) = re.findall(r"<img[^>]*>", page)
    assert html.unescape(re.match(r'<img alt="([^"\n]*)" ', picture)[1]) == text


def test_speed():
    interval = lambda fps: int(re.search(r"new Animation\(.*?, (\d+),", page(fps), re.S)[1])
    page = lambda fps: animation_html(dots(2), "a dot", fps=fps)
    assert interval(10) == 100 and interval(20) == 50


def test_player_loads_nothing_and_starts_where_it_is_told():
    page = animation_html(dots(), "a dot", "dot", first=2)
    assert "http" not in page and "<link" not in page and "fa-" not in page and "▶" in page
    assert "animdot.set_frame(2);" in page and 'width="96"' in page


def test_frames_are_small_and_true():
    "64 colours, and no pixel far from what it was."
    anim = dots(2)
    fig = anim._fig
    anim._draw_frame(1)
    fig.canvas.draw()
    before = np.asarray(fig.canvas.buffer_rgba())[..., :3].astype(int)
    page = animation_html(anim, "a dot")
    last = re.findall(r"data:image/png;base64,([\w+/=]+)", page)[-1]
    frame = Image.open(io.BytesIO(base64.b64decode(last)))
    assert frame.mode == "P" and 16 < len(frame.getcolors()) <= 64
    gap = np.abs(np.asarray(frame.convert("RGB")).astype(int) - before)
    assert gap.mean() < 2 and gap.max() < 40


def test_small_png_is_smaller():
    rng = np.random.default_rng(0)
    smooth = np.linspace(30, 225, 200)[:, None, None] + rng.normal(0, 9, (200, 200, 3))
    file = io.BytesIO()
    Image.fromarray(smooth.astype(np.uint8)).save(file, "PNG")
    b64 = base64.b64encode(file.getvalue()).decode()
    lines = "\\\n".join(re.findall(".{1,76}", b64))  # as matplotlib breaks them
    assert len(figures._small_png(lines)) < len(b64) / 2


# Files


def test_files_say_what_they_show(tmp_path, ax):
    fig = plot_plane(ax).figure
    path = save_figure(fig, str(tmp_path / "plane.png"), "an empty plane, σ = 1")
    assert path == tmp_path / "plane.png" and not plt.fignum_exists(fig.number)
    with Image.open(path) as image:
        assert image.info["Description"] == "an empty plane, σ = 1"
        assert round(image.info["dpi"][0]) == 160


def test_files_without_words(tmp_path, ax):
    with Image.open(save_figure(ax.figure, tmp_path / "plane.png")) as image:
        assert not image.info.get("Description")
    with pytest.raises(OSError):
        save_figure(ax.figure, tmp_path / "nowhere" / "plane.png")


def test_memories_have_the_name_and_size_that_they_are_given(ax):
    stars = plot_memories(ax, SIX, "stored", size=30)
    assert stars.get_label() == "stored" and stars.get_sizes() == [30]
    assert plot_memories(ax, SIX, None).get_label().startswith("_")  # not in a legend


def test_options_of_a_colour_bar_overrule_its_looks(ax):
    m = plot_energy(ax, *bowl())
    tall, short = (energy_colorbar(ax.figure, m, ax, shrink=s).ax for s in (0.9, 0.3))
    height = lambda a: a.get_position(original=True).height / ax.get_position(original=True).height
    assert_allclose([height(tall), height(short)], [0.9, 0.3])
