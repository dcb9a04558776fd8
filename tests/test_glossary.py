"""Words that people search lead somewhere: the page, and the message of a missing attribute."""

import copy
import inspect
import pickle
import pkgutil
import re
from pathlib import Path

import optax
import pytest
from markdown.extensions.toc import slugify

import lossopt as lo
from lossopt._glossary import TABLE
from lossopt._missing import advice

DOCS = Path(__file__).parents[1] / "docs"
PATH = re.compile(r"\b((?:lossopt|optax|jax)(?:\.\w+)+)(\([^()]*\))?")
PAGE = re.compile(r"docs/([\w-]+)\.md(#[\w-]+)?")
ROWS = [(room, words, what) for room, rows in TABLE.items() for words, what in rows.items()]
TITLES = {
    "lossopt": "Tasks",
    "lossopt.losses": "Losses",
    "lossopt.fused": "Losses in little memory",
    "lossopt.regularizers": "Regularizers",
    "lossopt.schedules": "Schedules",
    "lossopt.transforms": "Optimizers",
    "lossopt.training": "Training",
    "lossopt.parallel": "Devices",
    "lossopt.sweeps": "Sweeps",
    "lossopt.plots": "Pictures",
    "lossopt.checkpoint": "Checkpoints",
    "lossopt.testing": "Testing",
}
SEARCHED = {  # the words of others for what a room has
    "lossopt": """gradient_accumulation mixed_precision data_parallel adamw mse pos_weight AdamW
        huber label_smoothing early_stopping ema lasso ridge cross_entropy cosine DDP""",
    "lossopt.losses": """L1Loss MSELoss CrossEntropyLoss CTCLoss NLLLoss PoissonNLLLoss
        GaussianNLLLoss KLDivLoss BCELoss BCEWithLogitsLoss MarginRankingLoss HuberLoss
        SmoothL1Loss SoftMarginLoss MultiLabelSoftMarginLoss CosineEmbeddingLoss MultiMarginLoss
        TripletMarginLoss binary_cross_entropy_with_logits mse_loss
        BinaryCrossentropy BinaryFocalCrossentropy CategoricalCrossentropy CategoricalHinge
        CosineSimilarity Dice Hinge Huber KLDivergence LogCosh MeanAbsoluteError
        MeanAbsolutePercentageError MeanSquaredError MeanSquaredLogarithmicError Poisson
        SparseCategoricalCrossentropy SquaredHinge Tversky
        log_loss mean_squared_error mean_absolute_error linear_softmax_cross_entropy""",
    "lossopt.regularizers": "lasso Ridge elastic_net L1L2 MaxNorm NonNeg",
    "lossopt.schedules": """CosineAnnealingLR CosineAnnealingWarmRestarts CyclicLR ExponentialLR
        LambdaLR LinearLR MultiStepLR OneCycleLR PolynomialLR ReduceLROnPlateau SequentialLR StepLR
        ConstantLR CosineDecay CosineDecayRestarts ExponentialDecay PiecewiseConstantDecay
        PolynomialDecay wsd""",
    "lossopt.parallel": "DDP FullyShardedDataParallel init_device_mesh pmap unreplicate shard fsdp",
    "lossopt.transforms": "AdamW SGD RMSprop Adagrad NAdam RAdam LBFGS Muon ema clip_grad_norm_",
}


@pytest.mark.parametrize(("room", "words", "what"), ROWS, ids=lambda text: text[:40])
def test_what_the_table_names_exists(room, words, what):
    for path, arguments in PATH.findall(what):
        thing = pkgutil.resolve_name(path)
        given = set(re.findall(r"(\w+)=", arguments))
        assert given <= set(inspect.signature(thing).parameters if given else ())
    for page, anchor in PAGE.findall(what):
        titles = re.findall(r"^#+ (.*)$", (DOCS / f"{page}.md").read_text(), re.MULTILINE)
        assert not anchor or anchor[1:] in {slugify(title, "-") for title in titles}


@pytest.mark.parametrize("room", TABLE)
def test_every_word_gets_its_own_advice(room):
    for words, what in TABLE[room].items():
        for word in words.split(", "):
            assert advice(room, word) == what, word
            assert not hasattr(pkgutil.resolve_name(room), word.replace(" ", "_"))


@pytest.mark.parametrize("room", SEARCHED)
def test_what_people_search_is_a_member_or_has_advice(room):
    module = pkgutil.resolve_name(room)
    for name in SEARCHED[room].split():
        assert hasattr(module, name) or advice(room, name), name


def test_names_of_optax_are_members_or_have_advice():
    rooms = {"lossopt.losses": optax.losses, "lossopt.schedules": optax.schedules}
    for room, theirs in rooms.items():
        for name in (name for name, x in vars(theirs).items() if inspect.isfunction(x)):
            assert hasattr(pkgutil.resolve_name(room), name) or advice(room, name), name


@pytest.mark.parametrize(
    ("room", "name", "end"),
    [
        ("lossopt.transforms", "adamw", ": take lossopt.transforms.adam(weight_decay=)."),
        ("lossopt", "huber", ": take lossopt.losses.huber."),
        ("lossopt", "clip", ": take lossopt.losses.clip or lossopt.fused.clip."),
        ("lossopt.losses", "huber_loss", ": take lossopt.losses.huber."),
        ("lossopt.losses", "L2", ": take lossopt.losses.squared_error, twice optax.l2_loss."),
        ("lossopt.schedules", "L2", ": take lossopt.regularizers.L2."),
        ("lossopt.losses", "lasso", " for exact zeros (docs/transforms.md#exact-zeros)."),
        ("lossopt.transforms", "lamb", ": take optax.lamb."),
        ("lossopt.losses", "of_no_kind", "module 'lossopt.losses' has no attribute 'of_no_kind'"),
        ("lossopt.losses", "__wrapped__", "'lossopt.losses' has no attribute '__wrapped__'"),
    ],
)
def test_the_message_says_what_to_take(room, name, end):
    with pytest.raises(AttributeError) as error:
        getattr(pkgutil.resolve_name(room), name)
    assert str(error.value).startswith(f"module {room!r} has no attribute {name!r}")
    assert str(error.value).endswith(end)


@pytest.mark.parametrize("room", TABLE)
def test_a_room_is_a_module_like_any_other(room):
    module = pkgutil.resolve_name(room)
    assert not hasattr(module, "adamw")
    assert getattr(module, "mse", None) is None
    assert "adamw" not in dir(module)
    assert dict(inspect.getmembers(module)) == {name: getattr(module, name) for name in dir(module)}
    assert inspect.unwrap(module) is module
    assert inspect.getsource(module)
    for member in (x for name, x in vars(module).items() if name[0] != "_" and callable(x)):
        assert pickle.loads(pickle.dumps(member)) is member is copy.deepcopy(member)
    names = {}
    exec(f"from {room} import *", names)
    assert set(names) - {"__builtins__"} == {name for name in dir(module) if name[0] != "_"}
    with pytest.raises(ImportError, match="cannot import name 'adamw'"):
        exec(f"from {room} import adamw", {})


def test_python_still_says_did_you_mean():
    with pytest.raises(AttributeError) as error:
        lo.losses.hubre  # noqa: B018 -- that it is missing is what is tested
    assert error.value.name == "hubre"
    assert error.value.obj is lo.losses


def test_the_page_is_the_table():
    want = "".join(_section(room) for room in TABLE)
    page = (DOCS / "glossary.md").read_text()
    assert page.split("<!-- the table of lossopt/_glossary.py -->\n", 1)[1] == want


def _section(room):
    """The words of a room in Markdown, with links to what the advice names."""
    rows = [f"| {words} | {_linked(what)} |\n" for words, what in TABLE[room].items()]
    return f"\n## {TITLES[room]}\n\n| you look for | take |\n|---|---|\n" + "".join(rows)


def _linked(what):
    def name(match):
        path, arguments = match[1], match[2] or ""
        text = f"`{path.replace('lossopt.', 'lo.')}{arguments}`"
        return f"[{text}][{path}]" if path.startswith("lossopt.") else text

    text = PATH.sub(name, what)
    return PAGE.sub(lambda match: f"[{match[1]}]({match[1]}.md{match[2] or ''})", text)
