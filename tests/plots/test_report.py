import dataclasses
import platform
import re
import shlex
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import jaxlib
import matplotlib.image
import numpy as np
import optax
import pytest

import lossopt as lo
from lossopt.plots import _drawn
from lossopt.plots._origin import key_of
from tests.plots.page import Page

HOSTILE = "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a & b's", r"$\frac$"
FILES = *HOSTILE, "\ud800"  # a name of a file that is no text
BROWSERS = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
BROWSER = next(filter(None, BROWSERS), "")
COLUMNS = "step", "train/value", "validation/value"


def _objective(params, batch, hyperparameters):
    x, y = batch
    predictions = x @ params["kernel"] + params["bias"]
    penalty = lo.regularizers.L2(hyperparameters["strength"])(params["kernel"])
    return {
        "fit": lo.mean(lo.losses.squared_error(predictions, y)),
        "penalty": lo.constant(penalty),
    }


@pytest.fixture(scope="module")
def run():
    draws = np.random.default_rng(0)
    x = draws.normal(size=(21, 3)).astype(np.float32)
    y = (x @ np.float32([1, -2, 0.5]) + draws.normal(size=21)).astype(np.float32)
    return lo.fit(
        _objective,
        {"bias": np.float32(0), "kernel": np.zeros(3, np.float32)},
        (x, y),
        lambda hyperparameters: optax.adam(hyperparameters["rate"]),
        epochs=50,
        batch_size=8,
        key=jax.random.key(7),
        validation=(x, y / 2),  # on the way, not at the end
        stop=lo.training.Patience(4),
        hyperparameters={"rate": 0.1, "strength": 1e-4},
    )


@pytest.fixture(scope="module")
def short(run):
    """A run with few columns, which are soon drawn."""
    return dataclasses.replace(run, history={name: run.history[name] for name in COLUMNS})


@pytest.fixture
def read(tmp_path):
    """Writes the report of a run, and reads it."""

    def reader(run, **options):
        lo.plots.report(run, tmp_path / "report.html", **options)
        return Page((tmp_path / "report.html").read_text(encoding="utf-8"))

    return reader


@pytest.fixture(scope="module")
def file(run, tmp_path_factory):
    file = tmp_path_factory.mktemp("report") / "report.html"
    notes = "Labels are halved\nto validate."
    lo.plots.report(run, file, title="A line", notes=notes, hyperparameters={"width": 3})
    return file


@pytest.fixture(scope="module")
def page(file):
    return Page(file.read_text(encoding="utf-8"))


class TestFacts:
    def test_the_best_row_and_the_last(self, run, page):
        best, last = int(run.best_epoch), len(run.history["step"]) - 1
        assert 0 < best < last
        names = ["", f"best, row {best + 1} of {last + 1}", f"last, row {last + 1} of {last + 1}"]
        assert names in page.rows
        for name, column in run.history.items():
            wanted = [f"{column[row]:.6g}" for row in (best, last)]
            assert page.cells(name) == wanted
        assert "validation/value judged what is best." in page.text

    def test_why_it_ended(self, run, page):
        assert run.stopped is lo.training.Stopped.PATIENCE
        assert page.text.count("The value stopped falling.") == 1

    def test_parameters(self, page):
        assert page.cells("bias") == ["float32[]", "1"]
        assert page.cells("kernel") == ["float32[3]", "3"]
        assert page.cells("all") == ["2 leaves", "4"]
        assert page.cells("optimizer's state") == ["", "9"]  # adam: two moments and a count

    def test_hyperparameters_of_the_run_and_more(self, page):
        assert [page.cells(name) for name in ("rate", "strength", "width")] == [
            ["0.1"],
            ["0.0001"],
            ["3"],
        ]

    def test_versions_and_devices(self, page):
        for module in (jax, jaxlib, optax, np):
            assert page.cells(module.__name__) == [module.__version__]
        assert page.cells("Python") == [".".join(map(str, sys.version_info[:3]))]
        assert page.cells("platform") == [platform.platform()]
        assert page.cells("devices") == [f"{jax.device_count()} x cpu"]

    def test_command_key_and_batches(self, page):
        assert " ".join(map(shlex.quote, sys.orig_argv)) in page.text
        assert "key = jax.random.key(7, impl='threefry2x32')" in page.text
        assert [page.cells(name) for name in ("rows", "batch size", "microbatches")] == [
            ["21"],
            ["8"],
            ["1"],
        ]
        assert page.cells("train/0")[0].startswith("float32[21, 3], ")

    def test_title_and_notes(self, page):
        assert "A line" in page.text
        assert "Labels are halved to validate." in page.text

    def test_curves_name_what_they_show(self, page):
        labels = [value for name, value in page.attributes if name == "aria-label"]
        assert labels == ["loss", "fit", "gradient norm", "penalty", "update ratio"]
        for words in ("training", "validation", "epoch", "train/fit", "train/gradient_norm"):
            assert words in page.text

    def test_the_only_term_is_not_drawn_again(self, short, read):
        alone = {"train/fit": "train/value", "validation/fit": "validation/value"}
        columns = short.history | {name: short.history[x] for name, x in alone.items()}
        assert read(dataclasses.replace(short, history=columns)).tags.count("svg") == 1


class TestSelfContained:
    def test_nothing_is_loaded(self, page):
        assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
        for name, value in page.attributes:
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "action", "srcset"):
                assert value.startswith("#")
        everything = " ".join([*page.styles, *(str(value) for _, value in page.attributes)])
        assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)", everything))
        assert "@import" not in everything

    def test_the_page_forbids_it_itself(self, page):
        assert ("content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in (
            page.attributes
        )

    def test_what_is_named_within_is_there_and_once(self, page):
        assert len(set(page.ids)) == len(page.ids)
        values = [str(value) for _, value in page.attributes]
        targets = re.findall(r"(?:^|url\()#([\w-]+)", "\n".join(values), re.MULTILINE)
        assert targets
        assert set(targets) <= set(page.ids)


class TestHostile:
    def test_names_are_text(self, run, page, read, monkeypatch):
        monkeypatch.setattr(sys, "orig_argv", ["python", *FILES])
        columns = {name: run.history[name] for name in COLUMNS}
        columns |= {f"train/{name}": run.history["train/fit"] for name in HOSTILE}
        odd = dataclasses.replace(
            run,
            history=columns,
            params={name: np.zeros(2) for name in HOSTILE},
            origin={**run.origin, "hyperparameters": {"rate": HOSTILE[0]}},
        )
        options = {"title": HOSTILE[0], "notes": "\n".join(FILES)}
        seen = read(odd, **options, hyperparameters=dict.fromkeys(HOSTILE, HOSTILE[1]))
        assert set(seen.tags) <= set(page.tags)
        assert {name for name, _ in seen.attributes} <= {name for name, _ in page.attributes}
        for name in HOSTILE:
            assert len(seen.cells(f"train/{name}")) == 2
            assert seen.text.count(name) >= 5  # caption, curve, column, leaf, notes

    def test_a_broken_run_of_a_hostile_term(self, short, read):
        broken = _ended(short, "NONFINITE_LOSS", position=[1, 4, 0], terms=(HOSTILE[0], "fit"))
        assert f"in the term {HOSTILE[0]}" in read(broken).text


class TestEndings:
    def test_numbers_that_are_not_finite(self, short, read):
        seen = read(_ended(short, "NONFINITE_LOSS", position=[1, 4, 0]))
        assert "The loss became non-finite." in seen.text
        assert "It was in epoch 2, at step 5, in the term fit, counted from 1." in seen.text
        assert ("class", "lead alarm") in seen.attributes

    def test_parameters_that_are_not_finite(self, short, read):
        seen = read(_ended(short, "NONFINITE_PARAMETERS", position=[1, 4, -1]))
        assert "at step 5, in the parameters after it, counted from 1." in seen.text

    def test_interrupted_between_two_rows(self, short, read):
        seen = read(_ended(short, "INTERRUPTED", steps=short.steps + 2))
        assert "It was interrupted. lossopt.fit(..., start=run) goes on from here." in seen.text
        assert "2 steps after the last row: in none." in seen.text

    def test_before_the_first_row(self, short, read):
        columns = {name: x[:0] for name, x in short.history.items()}
        best = {"best_epoch": jnp.int32(-1), "steps": jnp.int32(1)}
        seen = read(_ended(short, "TIME", history=columns, **best))
        assert "The time was up." in seen.text
        assert "The run came to no row of history." in seen.text
        assert "svg" not in seen.tags

    def test_no_row_is_best(self, short, read):
        seen = read(dataclasses.replace(short, best_epoch=jnp.int32(-1)))
        assert "No row had a finite validation/value: none is best." in seen.text
        assert len(seen.cells("train/value")) == 1

    def test_nothing_judged(self, short, read):
        seen = read(dataclasses.replace(short, best_epoch=None, judge=None))
        assert "Nothing judged what is best" in seen.text

    def test_the_best_row_is_the_last(self, short, read):
        last = len(short.history["step"]) - 1
        seen = read(dataclasses.replace(short, best_epoch=jnp.int32(last)))
        assert ["", f"best and last, row {last + 1} of {last + 1}"] in seen.rows

    def test_a_run_without_a_host(self, short, read):
        seen = read(jax.tree.map(lambda x: x, short))
        assert "This run does not know them." in seen.text
        assert "Neither key nor batches are known" in seen.text


class TestLargeRuns:
    def test_layers_of_one_shape_share_a_line(self, short, read):
        layers = {f"layer_{i}": np.zeros((4, 5), np.float32) for i in range(30)}
        seen = read(dataclasses.replace(short, params=layers))
        assert seen.cells("layer_*") == ["30 x float32[4, 5]", "600"]
        assert seen.cells("all") == ["30 leaves", "600"]

    def test_curves_that_are_not_drawn_are_named(self, run, read, monkeypatch):
        monkeypatch.setattr(_drawn, "PANELS", 2)
        seen = read(run)
        assert seen.tags.count("svg") == 2
        assert "Not drawn: gradient norm, penalty, update ratio." in seen.text


def test_without_matplotlib_the_page_says_so(run, read, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    seen = read(run)
    assert "pip install 'lossopt[plots]'" in seen.text
    assert "svg" not in seen.tags
    assert seen.cells("rate") == ["0.1"]


class TestRefusals:
    def test_what_is_no_run(self, run, tmp_path):
        with pytest.raises(TypeError, match=r"Expected run as a lossopt\.training\.Run, got dict"):
            lo.plots.report(run.history, tmp_path / "report.html")

    def test_several_runs(self, run, tmp_path):
        several = jax.tree.map(lambda x: jnp.stack([x, x]), run)
        with pytest.raises(ValueError, match=r"several, of shape \(2,\). Take one"):
            lo.plots.report(several, tmp_path / "report.html")

    def test_a_traced_run(self, run, tmp_path):
        with pytest.raises(ValueError, match="traced by jit, vmap or grad"):
            jax.eval_shape(lambda run: lo.plots.report(run, tmp_path / "report.html"), run)

    def test_a_folder_that_does_not_exist(self, run, tmp_path):
        with pytest.raises(FileNotFoundError, match="Expected path in a folder that exists"):
            lo.plots.report(run, tmp_path / "missing" / "report.html")


@pytest.mark.parametrize(
    ("implementation", "data"),
    [
        ("threefry2x32", [0, 7]),
        ("threefry2x32", [0, 2**31]),
        ("threefry2x32", [3, 4]),
        ("rbg", [0, 7, 0, 7]),
        ("rbg", [0, 7, 1, 2]),
    ],
)
def test_the_key_on_the_page_is_that_of_the_run(implementation, data):
    key = jax.random.wrap_key_data(np.uint32(data), impl=implementation)
    words = f"{jax.random.key_impl(key)} {np.asarray(jax.random.key_data(key)).tolist()}"
    assert key_of(f"one's own [{data[0]}, {data[1]}]").endswith('impl="one\'s own")')
    again = eval(key_of(words), {"jax": jax, "np": np})
    assert again.dtype == key.dtype
    assert np.array_equal(jax.random.key_data(again), jax.random.key_data(key))


@pytest.mark.skipif(not BROWSER, reason="no chromium is installed")
def test_a_browser_shows_it(file, page, tmp_path):
    picture = tmp_path / "page.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--dump-dom"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=600,900"]
    command = [BROWSER, *options, f"--screenshot={picture}", file.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert Page(shown.stdout).text == page.text
    pixels = matplotlib.image.imread(picture)[..., :3]
    assert pixels.shape[:2] == (900, 600)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    assert np.ptp(pixels[:, -8:], axis=(0, 1)).max() == 0  # nothing reaches beyond the margin


def _ended(short, why, **fields):
    fields = {name: np.int32(x) if name == "position" else x for name, x in fields.items()}
    status = jnp.int32(lo.training.Stopped[why].code)
    return dataclasses.replace(short, status=status, **fields)
