"""The explorer: closed forms, networks and walks against the library, and every way to use it."""

import math
import re
import sys

import numpy as np
import pytest
import torch
from browsing import CONTRAST, in_browser, next_frame, open_window
from helpers import ROOT, none, tool

from amtutorial.circle import energy_am, score_am
from amtutorial.data import circle_patterns, generate_circle_data, plane_grid
from amtutorial.minima import find_minima
from amtutorial.retrieval import hopfield_update, retrieve
from amtutorial.sampling import Euler_Maruyama_sampler, moments, time_grid
from amtutorial.scorenet import ScoreNet
from amtutorial.sde import VESDETerms, effective_number, marginal_logp, marginal_sample
from amtutorial.sde import marginal_score, posterior_weights
from amtutorial.transition import circle_recall, covered_share

sys.path.insert(0, str(ROOT / "tools"))
import explorer_networks as networks  # noqa: E402

READY = "window.amExplorer && amExplorer.state().frame > 0"
CELL = next(
    c["id"]
    for c in tool.load(ROOT / "nbs" / "explorer.ipynb")["cells"]
    if "explorer.js" in tool.source(c)
)
OUTPUT = re.compile(
    r'<link rel="stylesheet" href="explorer.css">.*?src="explorer.js"></script>', re.S
)


def wrapped(route):
    "The page with the output of the cell in a box that has the cell's id, as Quarto writes it."
    answer = route.fetch()
    box = f'<div id="{CELL}" class="cell"><div class="cell-output">'
    text, n = OUTPUT.subn(lambda found: f"{box}{found[0]}</div></div>", answer.text())
    assert n == 1
    route.fulfill(response=answer, body=text)


def opened(open_page, handlers=None, **options):
    handlers = {"**/explorer.html": wrapped} | (handlers or {})
    page = open_page("explorer.html", handlers=handlers, **options)
    page.wait_for_function(READY)
    return page


@pytest.fixture(scope="session")
def explorer_window(browser, address):
    page = open_window(browser, address, "explorer.html", handlers={"**/explorer.html": wrapped})
    page.wait_for_function(READY)
    return page


@pytest.fixture
def explorer(explorer_window):
    "The explorer as it first opens: nine memories at t = 0.15."
    page = explorer_window
    page.locator("[value=landscape]").check()
    for choice in "[value=cue]", "[value=hopfield]":
        page.locator(choice).check()
    page.locator(".am-landscape [data-preset='9']").click()
    set_t(page, 0.15)
    yield page
    none(page.faults)


def state(page):
    "What the explorer shows, after the next frame."
    next_frame(page)
    return page.evaluate("amExplorer.state()")


def set_t(page, t):
    page.evaluate(
        """t => { const e = document.querySelector('#explorer [name=t]')
        e.value = Math.log(t)
        e.dispatchEvent(new Event('input', { bubbles: true })) }""",
        t,
    )


def exact_minima(patterns, t, bound=1.5, n=161):
    "What chapter 7 finds: positions, barriers and N_eff of the minima that are no ripples."
    X, Y, points = plane_grid(n, bound)
    energy = -marginal_logp(points.double(), t, patterns).reshape(n, n)
    found = find_minima(
        energy,
        torch.stack([X, Y], -1).double(),
        lambda x: x + t * marginal_score(x, t, patterns),
        tol=1e-10,
    )
    return found.x, found.barrier, effective_number(posterior_weights(found.x, t, patterns))


def assert_same_minima(shown, patterns, t):
    wells = [m for m in shown["minima"] if m["kind"] != "ripple"]
    x, barrier, n_eff = exact_minima(patterns, t)
    assert len(wells) == len(x)
    torch.testing.assert_close(
        torch.tensor([[m["x"], m["y"]] for m in wells], dtype=torch.float64), x, rtol=0, atol=1e-6
    )
    torch.testing.assert_close(
        torch.tensor([m["n_eff"] for m in wells], dtype=torch.float64), n_eff, rtol=0, atol=1e-5
    )
    torch.testing.assert_close(
        torch.tensor([m["barrier"] or math.inf for m in wells], dtype=torch.float64),
        barrier,
        rtol=0,
        atol=1e-2,
    )  # on a grid
    assert [m["kind"] == "memory" for m in wells] == [n < 1.5 for n in n_eff.tolist()]


@in_browser
def test_closed_forms_are_those_of_the_library(explorer):
    g = torch.Generator().manual_seed(1)
    for K, t in [(1, 0.5), (2, 0.15), (9, 0.002), (9, 0.15), (30, 1.0)]:
        patterns, x = (
            circle_patterns(K).double(),
            torch.randn(20, 2, generator=g, dtype=torch.float64),
        )
        got = explorer.evaluate(
            """([x, t, p]) => x.map(([a, b]) => { const w = amExplorer.weights(a, b, t, p)
            return [amExplorer.energy(a, b, t, p), amExplorer.effectiveNumber(w),
              ...amExplorer.score(a, b, t, p), ...amExplorer.denoise([a, b], t, p)] })""",
            [x.tolist(), t, patterns.tolist()],
        )
        w = posterior_weights(x, t, patterns)
        want = torch.cat(
            [
                -marginal_logp(x, t, patterns)[:, None],
                effective_number(w)[:, None],
                marginal_score(x, t, patterns),
                w @ patterns,
            ],
            1,
        )
        torch.testing.assert_close(
            torch.tensor(got, dtype=torch.float64), want, rtol=1e-9, atol=1e-9
        )
    unit = torch.tensor([[math.cos(0.3), math.sin(0.3)], [1, 0]], dtype=torch.float64)
    assert explorer.evaluate(
        "([x, p]) => amExplorer.denoise(x, 0.3, p)", [unit[0].tolist(), unit.tolist()]
    ) == pytest.approx(hopfield_update(unit[:1], unit, 1 / 0.3)[0].tolist(), abs=1e-12)


@in_browser
def test_circle_is_that_of_the_library(explorer):
    R = torch.linspace(0, 3, 61, dtype=torch.float64)
    x = torch.stack([R * math.cos(1.0), R * math.sin(1.0)], 1)
    for t in 0.002, 0.05, 0.15, 1.0:
        beta = 1 / (2 * t)
        got = explorer.evaluate(
            "([R, t]) => R.map(r => amExplorer.circleEnergy(r, t))", [R.tolist(), t]
        )
        torch.testing.assert_close(
            torch.tensor(got, dtype=torch.float64),
            beta * energy_am(x, beta, normalize=False),
            rtol=1e-10,
            atol=1e-10,
        )


@in_browser
def test_map_and_flow(explorer):
    "The map, drawn by products of Gaussians; the flow of one memory, whose distance falls as √t."
    patterns = circle_patterns(30).double()
    got = explorer.evaluate("p => [...amExplorer.landscape(0.15, p, 41, 1.5)]", patterns.tolist())
    _, _, points = plane_grid(41, 1.5)
    want = -marginal_logp(points.double(), 0.15, patterns).reshape(41, 41).T.ravel()
    torch.testing.assert_close(torch.tensor(got, dtype=torch.float64), want, rtol=0, atol=1e-6)
    end = explorer.evaluate(
        """() => { let x = [1, 1]
        for (let t = 0.5; t > 0.01; t *= 0.95) x = amExplorer.flow(x, t, t * 0.95, [[0.2, 0.1]])
        return x }"""
    )
    s = 0.5
    while s > 0.01:
        s *= 0.95
    assert end == pytest.approx(
        [0.2 + 0.8 * math.sqrt(s / 0.5), 0.1 + 0.9 * math.sqrt(s / 0.5)], abs=1e-8
    )


@in_browser
@pytest.mark.parametrize(
    "K, t, phase",
    [
        (2, 0.15, "memories"),
        (9, 0.15, "mixtures"),
        (9, 0.02, "memories"),
        (30, 0.15, "circle"),
        (30, 0.3, "one valley"),
        (9, 0.5, "one valley"),
    ],
)
def test_presets_and_slider(explorer, K, t, phase):
    explorer.locator(f".am-landscape [data-preset='{K}']").click()
    set_t(explorer, t)
    shown = state(explorer)
    patterns = circle_patterns(K).double()
    torch.testing.assert_close(
        torch.tensor(shown["patterns"], dtype=torch.float64), patterns, rtol=0, atol=1e-8
    )
    assert (
        shown["t"] == pytest.approx(t, rel=1e-9)
        and f"β = 1/(2σ²t) = {1 / (2 * shown['t']):.3g}"
        in explorer.locator(".am-landscape output").inner_text()
    )
    if (K, t) != (9, 0.02):
        assert_same_minima(shown, patterns, shown["t"])
    assert shown["phase"] == phase and explorer.locator(".am-phase b").inner_text() == phase


@in_browser
def test_circle_preset(explorer):
    explorer.locator("[data-preset=circle]").click()
    shown = state(explorer)
    assert shown["phase"] == "circle" and shown["patterns"] is None and shown["minima"] == []
    for t in 0.002, 0.15, 0.49, 0.6:  # the bottom of the valley: no force along the radius
        R = explorer.evaluate("t => amExplorer.ringRadius(t)", t)
        assert abs(
            score_am(torch.tensor([[R, 0.0]], dtype=torch.float64), 1 / (2 * t)).max()
        ) < 1e-6 and (R > 0) == (t < 0.5)


def plane(page):
    "A function from points of the plane to pixels of the window."
    page.locator(".am-landscape canvas").scroll_into_view_if_needed()
    box = page.locator(".am-landscape canvas").bounding_box()
    return lambda x, y: (
        box["x"] + (x / 1.5 + 1) / 2 * box["width"],
        box["y"] + (1 - y / 1.5) / 2 * box["height"],
    )


@in_browser
def test_drag_moves_a_memory(explorer):
    explorer.locator(".am-landscape [data-preset='2']").click()
    before = state(explorer)["patterns"]
    at = plane(explorer)
    explorer.mouse.move(*at(*before[0]))
    explorer.mouse.down()
    explorer.mouse.move(*at(0.2, 0.3), steps=4)
    explorer.mouse.up()
    explorer.mouse.move(*at(-1, -1))
    shown = state(explorer)
    assert (
        shown["patterns"][0] == pytest.approx([0.2, 0.3], abs=0.01)
        and shown["patterns"][1] == before[1]
    )
    assert_same_minima(shown, torch.tensor(shown["patterns"], dtype=torch.float64), shown["t"])


@in_browser
def test_memories_are_added_and_removed(explorer):
    explorer.locator("[data-do=clear]").click()
    explorer.locator("[value=add]").check()
    at = plane(explorer)
    for point in (0.5, 0.5), (-0.5, 0.2), (0.1, -0.8):
        explorer.mouse.click(*at(*point))
    assert len(state(explorer)["patterns"]) == 3
    explorer.locator("[value=remove]").check()
    explorer.mouse.click(*plane(explorer)(-0.5, 0.2))
    assert [p[0] > 0 for p in state(explorer)["patterns"]] == [True, True]


@in_browser
def test_cue_is_retrieved(explorer):
    patterns = circle_patterns(9).double()
    explorer.mouse.click(*plane(explorer)(0.1, 0.3))
    explorer.wait_for_function("amExplorer.state().cue?.done")
    trail = torch.tensor(state(explorer)["cue"]["trail"], dtype=torch.float64)
    torch.testing.assert_close(
        trail[1:3],
        torch.stack([hopfield_update(x, patterns, 1 / 0.15) for x in trail[:2]]),
        rtol=0,
        atol=1e-6,
    )
    torch.testing.assert_close(
        trail[-1], retrieve(trail[:1], patterns, 1 / 0.15).x[0], rtol=0, atol=2e-3
    )


@in_browser
@pytest.mark.parametrize("motion", ["flow", "noise"])
def test_cue_ends_on_a_memory(explorer, motion):
    explorer.locator(f"[value={motion}]").check()
    explorer.mouse.click(*plane(explorer)(0.1, 0.3))
    explorer.wait_for_function("amExplorer.state().cue?.done")
    shown = state(explorer)
    last = torch.tensor(shown["cue"]["trail"][-1], dtype=torch.float64)
    assert torch.cdist(last[None], circle_patterns(9).double()).min() < 5 * math.sqrt(0.002)
    assert shown["shown"] == shown["t"], "the landscape returns to the noise of the slider"


@in_browser
def test_keyboard(explorer):
    canvas = explorer.locator(".am-landscape canvas")
    canvas.focus()
    before = state(explorer)["patterns"]
    for key in ["m", "Enter", "ArrowRight", "ArrowUp", "Enter"]:
        canvas.press(key)
    after = state(explorer)["patterns"]
    moved = [k for k in range(9) if after[k] != before[k]]
    assert len(moved) == 1 and after[moved[0]] == pytest.approx(
        [before[moved[0]][0] + 0.05, before[moved[0]][1] + 0.05], abs=1e-9
    )
    canvas.press("Delete")
    assert len(state(explorer)["patterns"]) == 8
    explorer.locator("#explorer [name=t]").press("ArrowLeft")
    assert state(explorer)["t"] < 0.15


# What needs no browser


def test_no_cell_has_the_id_of_an_output_or_script():
    "Quarto gives a cell's id to the box around its output."
    used = set()
    for path in (ROOT / "nbs").glob("*.js"):
        used |= set(re.findall(r"getElementById\(['\"]([\w-]+)", path.read_text("utf-8")))
    assert "explorer" in used
    cells = {}
    for path in tool.notebooks(ROOT):
        for c in tool.load(path)["cells"]:
            cells.setdefault(c["id"], path.name)
            for output in c.get("outputs", []):
                html = "".join(output.get("data", {}).get("text/html", ""))
                used |= set(re.findall(r"\bid=['\"]?([\w-]+)", html))
                used |= set(re.findall(r"getElementById\(['\"]([\w-]+)", html))
    none([f"{cells[name]}: cell id {name} is the id of an element" for name in used & set(cells)])


def test_networks_are_those_of_the_source():
    assert not networks.stale(), "run tools/explorer_networks.py"
    assert len(networks.SIZES) >= 5 and {2, 1000} <= set(networks.SIZES)
    for K in networks.SIZES:
        about, tensors = networks.read(K)
        assert (about["K"], about["seed"], about["iterations"]) == (K, 9, 1000)
        assert torch.equal(tensors.pop("memories"), circle_patterns(K))
        assert {w.dtype for w in tensors.values()} == {torch.float16}
        assert networks.path_of(K).stat().st_size < 2e5 + 2500 + 8 * K


def test_a_stale_network_is_found(monkeypatch, capsys):
    "Another source, or another setting, asks for new files."
    monkeypatch.setitem(networks.SETTINGS, "iterations", 999)
    assert networks.stale() == list(networks.SIZES) and networks.main(["check"])
    assert capsys.readouterr().out.count("is stale") == len(networks.SIZES)
    monkeypatch.undo()
    monkeypatch.setattr(networks, "SHAPING", networks.SHAPING[1:])
    assert networks.stale() == list(networks.SIZES)


def test_resources_are_listed_and_fit_the_column():
    listed = re.search(r"resources: \[(.*?)\]", (ROOT / "_quarto.yml").read_text("utf-8"))[1]
    names = [name.strip(' "') for name in listed.split(",")]
    for path in [*(ROOT / "nbs").glob("explorer*.js"), *map(networks.path_of, networks.SIZES)]:
        assert any(path.match(name) for name in names), f"{path.name} is not listed"
        if path.suffix == ".js":
            lines = path.read_text("utf-8").splitlines()
            none([f"{path.name}: {line}" for line in lines if len(line) > 100])


# The particles: numbers


def network(K):
    "The network of a file, in the library."
    about, tensors = networks.read(K)
    terms = VESDETerms(about["sigma"])
    model = ScoreNet(2, marginal_prob_std=terms.marginal_prob_std, readout=about["readout"])
    memories = tensors.pop("memories")
    mean, cov = moments(memories)
    state = {name: w.float() for name, w in tensors.items()}
    state |= dict(_extra_state=torch.tensor(True), data_mean=mean, data_cov=cov)
    model.load_state_dict(state)
    return model.eval(), memories


def points(numbers):
    return torch.tensor(numbers, dtype=torch.float64).reshape(-1, 2)


DENOISERS = """async K => {
    const network = await amExplorer.loadNetwork(K)
    window.denoisers = { network: amExplorer.networkDenoiser(network),
      exact: amExplorer.exactDenoiser(network.tensors.memories) }
    return [...network.tensors.memories] }"""


@in_browser
@pytest.mark.parametrize("K", networks.SIZES)
@torch.no_grad()
def test_scores_are_those_of_the_library(explorer, K):
    "Of the network and exact, over the typical score, at times from 1 to the last."
    model, memories = network(K)
    assert torch.equal(points(explorer.evaluate(DENOISERS, K)).float(), memories)
    g = torch.Generator().manual_seed(K)
    for t in 1.0, 0.15, 0.01, 1e-3, 1e-4, 1e-5:
        x = marginal_sample(37, t, memories, 1.0, g)
        exact = marginal_score(x.double(), t, memories.double())
        learned = model(x, torch.tensor(t)).double()
        for name, want, tolerance in ("network", learned, 1e-3), ("exact", exact, 1e-6):
            got = explorer.evaluate(
                """([name, x, t]) => [...amExplorer.scoreOf(denoisers[name])(
                    Float64Array.from(x), t)]""",
                [name, x.double().ravel().tolist(), t],
            )
            typical = want.square().sum(1).mean().sqrt()
            error = (points(got) - want).norm(dim=1).max() / typical
            assert error < tolerance, f"{name} at t = {t}: {error:.1e}"


@in_browser
@pytest.mark.parametrize("K", [2, 9, 1000])
def test_recall_and_null_are_those_of_chapter_14(explorer, K):
    memories = circle_patterns(K)
    x = torch.from_numpy(generate_circle_data(2000, seed=K)) * 1.3
    x = torch.cat([x, memories.double()])
    numbers = memories.ravel().tolist(), x.ravel().tolist()
    near, null, wide = explorer.evaluate(
        """([memories, x]) => { const sorted = amExplorer.sortedAngles(memories)
        return [amExplorer.countRecalled(amExplorer.distances(Float64Array.from(x), sorted)),
          ...[0.1, 0.35].map(width => amExplorer.coveredShare(sorted, width))] }""",
        numbers,
    )
    assert near == round(circle_recall(x, memories) * len(x))
    assert null == pytest.approx(covered_share(memories), abs=1e-6)
    assert wide == pytest.approx(covered_share(memories, 0.35), abs=1e-6)


@in_browser
@pytest.mark.parametrize("name", ["network", "exact"])
@torch.no_grad()
def test_walk_is_that_of_the_library(explorer, name):
    "Step by step with the same noise; the times are those of (3.3)."
    model, memories = network(9)
    explorer.evaluate(DENOISERS, 9)
    times, noise, states = explorer.evaluate(
        """name => { const uniform = amExplorer.uniforms(5), noise = []
        const memories = Float64Array.from(amExplorer.few(9).flat())
        const x = amExplorer.noiseParticles(memories, 20, uniform)
        const times = amExplorer.timeGrid(50, 1e-5)
        const normal = amExplorer.normals(uniform)
        const kept = () => { noise.push(normal()); return noise.at(-1) }
        const walk = amExplorer.reverseSDE(denoisers[name], x, times, kept)
        return [times, noise, Array.from(walk, x => [...x])] }""",
        name,
    )
    torch.testing.assert_close(torch.tensor(times), time_grid(50), rtol=1e-6, atol=0)
    states = [points(x) for x in states]
    assert len(states) == 52
    noise = torch.tensor(noise, dtype=torch.float64).reshape(50, 20, 2)
    score = lambda x, t: (
        marginal_score(x, t, memories.double())
        if name == "exact"
        else model(x.float(), torch.tensor(t)).double()
    )
    for (x, after), (t, s), z in zip(zip(states, states[1:]), zip(times, times[1:]), noise):
        want = x + (t - s) * score(x, t) + math.sqrt((t - s) * s / t) * z
        torch.testing.assert_close(after, want, rtol=0, atol=2e-5)
    last = states[-2] + times[-1] * score(states[-2], times[-1])
    torch.testing.assert_close(states[-1], last, rtol=0, atol=1e-5)
    assert abs(noise.mean()) < 5 / math.sqrt(2000) and abs(noise.std() - 1) < 5 / math.sqrt(4000)


@in_browser
def test_half_precision(explorer):
    "Every finite number of sixteen bits."
    bits = np.arange(2**16, dtype=np.uint16)
    numbers = bits.view(np.float16)
    finite = np.isfinite(numbers)
    got = explorer.evaluate("bits => bits.map(amExplorer.half)", bits[finite].tolist())
    assert np.array_equal(np.array(got), numbers[finite].astype(float))


# The particles: the view


DONE = "amExplorer.recall.state().ready && amExplorer.recall.state().step === 153"


@pytest.fixture(scope="session")
def recall_window(browser, address):
    page = open_window(
        browser, address, "explorer.html", width=1400, handlers={"**/explorer.html": wrapped}
    )
    page.wait_for_function(READY)
    page.locator("[value=recall]").check()
    return page


@pytest.fixture
def recall(recall_window):
    "The second view, with two memories and seed 1."
    choose(recall_window, 2)
    seed_of(recall_window, 1)
    recall_window.locator("[value=network]").check()
    yield recall_window
    none(recall_window.faults)


def settled(page, K):
    "Waits until the page shows K memories, with their network or the word that it will not come."
    page.wait_for_function(
        f"amExplorer.recall.state().K === {K} && amExplorer.recall.state().ready"
    )
    next_frame(page)  # the state is there before the page shows it


def choose(page, K):
    page.locator(f".am-recall [data-preset='{K}']").click()
    settled(page, K)


def seed_of(page, seed):
    page.locator("[name=seed]").fill(str(seed))
    page.locator("[name=seed]").press("Tab")
    page.wait_for_function(
        f"amExplorer.recall.state().seed === {seed} && amExplorer.recall.state().ready"
    )
    next_frame(page)


def seen(page):
    "What the second view shows, after the next frame."
    next_frame(page)
    return page.evaluate("amExplorer.recall.state()")


def dropped(page):
    "The view after a walk to the end, which takes at least a frame for each of its steps."
    before = seen(page)["frame"]
    page.locator("[data-do=drop]").click()
    page.wait_for_function(f"{DONE} && amExplorer.recall.state().frame >= {before + 153}")
    return seen(page)


def step_to(page, step):
    page.evaluate(
        """step => { const e = document.querySelector('[name=step]')
        e.value = -step
        e.dispatchEvent(new Event('input', { bubbles: true })) }""",
        step,
    )


def table(page):
    return [page.locator(f"[data-count={n}]").inner_text() for n in ("exact", "network", "null")]


@in_browser
@pytest.mark.parametrize("K", [2, 32, 1000])
def test_recall_under_both_scores(recall, K):
    "The exact score recalls always; the network as much as in Python; a thousand as by chance."
    choose(recall, K)
    shown = dropped(recall)
    model, memories = network(K)
    null = covered_share(memories)
    x = Euler_Maruyama_sampler(
        model,
        VESDETerms(1.0),
        2000,
        50,
        patterns=memories,
        generator=torch.Generator().manual_seed(4),
    )
    f, got = circle_recall(x, memories), shown["counts"]["network"] / 300
    error = lambda p: math.sqrt(max(p * (1 - p), 1e-3) * (1 / 300 + 1 / 2000))
    assert abs(got - f) < 4 * error(f)
    assert shown["counts"]["exact"] == 300
    assert shown["chance"] == pytest.approx(300 * null, abs=1e-3)
    assert table(recall) == ["300", str(shown["counts"]["network"]), f"{300 * null:.0f}"]
    words = recall.locator(".am-verdict").inner_text()
    if K == 2:
        assert got == 1 and "recalls, as the exact score does" in words
    elif K == 1000:
        assert abs(got - null) < 4 * error(null) and "no more often than chance" in words
    else:
        assert null + 8 * error(null) < got < 1 - 8 * error(got) and "On the way" in words
    ends = points(shown["particles"])
    assert round(circle_recall(ends, memories) * 300) == shown["counts"]["network"]
    bars = recall.locator(".am-recall svg text[text-anchor]").all_text_contents()
    assert sum(int(n or 0) for n in bars) == 300 and int(bars[0]) == shown["counts"]["network"]


@in_browser
def test_frames_are_quick(recall):
    "A frame that nothing interrupts takes less than a thirtieth of a second, with K = 1,000 too."
    choose(recall, 1000)
    ms = recall.evaluate(
        """() => new Promise(done => {
        const spent = [], tick = () => {
          const { step, ms } = amExplorer.recall.state()
          spent.push(ms)
          step < 60 ? requestAnimationFrame(tick) : done(spent) }
        document.querySelector('[data-do=drop]').click()
        tick() })"""
    )
    assert min(ms[1:]) < 1000 / 30  # the first is of an earlier frame


@in_browser
def test_same_seed_same_picture(recall):
    choose(recall, 9)
    first = dropped(recall)
    seed_of(recall, 2)
    other = seen(recall)
    assert other["step"] == 0 and other["seed"] == 2
    seed_of(recall, 1)
    again = dropped(recall)
    assert again["particles"] == first["particles"] and again["counts"] == first["counts"]
    step_to(recall, 0)
    noise = seen(recall)["particles"]
    assert noise != other["particles"] and np.std(noise) > 1
    recall.locator("[value=exact]").check()
    assert seen(recall)["particles"] == noise, "both scores get the same particles"


@in_browser
def test_slider_and_switch(recall):
    "The slider walks on into what is not known yet, and jumps back to what is."
    step_to(recall, 39)
    recall.wait_for_function("amExplorer.recall.state().step === 39")
    assert recall.locator(".am-recall output").inner_text() == f"t = {time_grid(50)[13]:.3g}"
    at = seen(recall)["particles"]
    step_to(recall, 10)
    assert seen(recall)["step"] == 10
    step_to(recall, 39)
    assert seen(recall)["particles"] == at
    recall.locator("[value=exact]").check()
    shown = seen(recall)
    assert shown["shown"] == "exact" and shown["particles"] != at
    step_to(recall, 153)
    recall.wait_for_function(DONE)
    assert recall.locator(".am-recall output").inner_text() == "t = 1.0e-5, denoised"


@in_browser
def test_keyboard_of_the_particles(recall):
    canvas = recall.locator(".am-recall canvas")
    canvas.focus()
    canvas.press("Enter")
    recall.wait_for_function("amExplorer.recall.state().step > 3")
    canvas.press("ArrowRight")
    step = seen(recall)["step"]
    for key, change in ("ArrowLeft", 1), ("ArrowRight", -1), ("Shift+ArrowRight", -10):
        canvas.press(key)
        step = max(0, step + change)
        recall.wait_for_function(f"amExplorer.recall.state().step === {step}")
    assert seen(recall)["shown"] == "network"
    canvas.press("s")
    assert seen(recall)["shown"] == "exact" and recall.locator("[value=exact]").is_checked()
    recall.locator("[data-do=drop]").press("Enter")
    recall.wait_for_function("amExplorer.recall.state().step > 2")
    recall.locator("[name=step]").press("ArrowRight")
    recall.locator("[value=exact]").press("ArrowLeft")
    assert seen(recall)["shown"] == "network"
    recall.locator("[value=recall]").press("ArrowLeft")
    canvas.wait_for(state="hidden")
    recall.locator(".am-landscape canvas").wait_for(state="visible")
    recall.locator("[value=landscape]").press("ArrowRight")
    canvas.wait_for(state="visible")


@in_browser
def test_networks_are_fetched_when_they_are_chosen(open_page):
    asked, page = [], None
    page = opened(open_page, requests=asked)
    assert not [url for url in asked if "network-" in url]
    page.locator("[value=recall]").check()
    for K in 2, 9:
        choose(page, K)
    names = [url.rpartition("/")[2] for url in asked if "network-" in url]
    assert names == ["network-K2.safetensors", "network-K9.safetensors"]
    assert all(url.startswith(page.url.rpartition("/")[0]) for url in asked if "network" in url)


@in_browser
@pytest.mark.parametrize("fault", ["missing", "cut short"])
def test_a_network_that_cannot_be_loaded(open_page, fault):
    "One sentence says so, and the exact score goes on."

    def spoil(route):
        if fault == "missing":
            return route.fulfill(status=404, body="")
        route.fulfill(body=networks.path_of(9).read_bytes()[:50_000])

    page = opened(open_page, {"**/network-K9.safetensors": spoil})
    page.locator("[value=recall]").check()
    choose(page, 9)
    shown = seen(page)
    words = page.locator(".am-fault").inner_text()
    reason = "status 404" if fault == "missing" else "the file is cut short"
    assert words == f"The network of K = 9 could not be loaded ({reason}). The exact score goes on."
    assert shown["shown"] == "exact" and page.locator("[value=network]").is_disabled()
    shown = dropped(page)
    assert shown["counts"]["exact"] == 300 and table(page)[1] == "not loaded"
    choose(page, 2)
    assert not page.locator(".am-fault").is_visible() and seen(page)["shown"] == "network"
    page.locator("[value=landscape]").check()
    page.locator(".am-landscape canvas").wait_for(state="visible")
    assert all("network-K9" in line for line in page.faults), page.faults


# On a phone, in both themes


@in_browser
@pytest.mark.parametrize("view", ["landscape", "recall"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_look(open_page, view, scheme, width):
    "No sideways scroll, no formula cut, contrast AA; slider and plane on the screen together."
    page = opened(open_page, width=width, color_scheme=scheme, reduced_motion="reduce")
    page.locator(f"[value={view}]").check()
    if view == "recall":
        choose(page, 1000)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    none(
        page.evaluate(
            """() => [...document.querySelectorAll('.katex-display')]
            .filter(e => e.scrollWidth > e.clientWidth + 1)
            .map(e => `cut: ${e.textContent.slice(0, 40)}`)"""
        )
    )
    none(
        page.evaluate(
            """() => [...document.querySelectorAll('#explorer *')]
            .filter(e => e.getBoundingClientRect().right > innerWidth + 1)
            .map(e => e.outerHTML.slice(0, 90))"""
        )
    )
    none(page.evaluate(CONTRAST))
    parts = [f".am-{view} {name}" for name in ("canvas", "[type=range]", "output")]
    tops = [page.locator(part).bounding_box() for part in parts]
    together = max(b["y"] + b["height"] for b in tops) - min(b["y"] for b in tops)
    assert together < 800 * 0.75


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_particles_on_a_phone(open_page, scheme):
    page = opened(open_page, width=390, color_scheme=scheme, has_touch=True, is_mobile=True)
    page.locator("[value=recall]").tap()
    page.locator(".am-recall [data-preset='9']").tap()
    settled(page, 9)
    page.locator(".am-recall canvas").tap()
    page.wait_for_function("amExplorer.recall.state().step > 5")
    page.locator("[value=exact]").tap()
    page.wait_for_function("amExplorer.recall.state().shown === 'exact'")
    page.wait_for_function(DONE)
    before = seen(page)["frame"]
    page.locator("[data-do=drop]").tap()
    page.wait_for_function(f"amExplorer.recall.state().frame > {before + 3}")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    none(page.faults)


@in_browser
def test_touch_on_a_phone(open_page):
    page = opened(open_page, width=390, has_touch=True, is_mobile=True)
    page.touchscreen.tap(*plane(page)(0.1, 0.2))
    page.wait_for_function("amExplorer.state().cue?.trail.length > 1")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
