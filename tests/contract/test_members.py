"""Every public member of a family has a row in `cases`, and the anatomy of its docstring."""

import dataclasses
import inspect

import pytest

import lossopt as lo
from tests import cases

FAMILIES = {
    lo.losses: cases.LOSSES | cases.DECISIONS,
    lo.regularizers: cases.REGULARIZERS,
    lo.schedules: cases.SCHEDULES,
    lo.transforms: cases.TRANSFORMS,
}
NO_MEMBERS = {"Regularizer", "Summand", "Quadratic", "add", "averaged"}  # protocols, and verbs


@pytest.mark.parametrize("room", FAMILIES, ids=lambda room: room.__name__)
def test_every_member_has_a_case(room):
    public = {name for name, thing in vars(room).items() if name[0] != "_" and callable(thing)}
    members = {name for name in public - NO_MEMBERS if not name.endswith(("State", "_metric"))}
    assert members == set(FAMILIES[room])


@pytest.mark.parametrize("room", FAMILIES, ids=lambda room: room.__name__)
def test_every_member_has_the_anatomy(room):
    for name in FAMILIES[room]:
        member = getattr(room, name)
        wanted = ["Args:", "Returns:"] if inspect.isfunction(member) else ["Attributes:"]
        if dataclasses.is_dataclass(member) and not dataclasses.fields(member):
            wanted = []
        for section in [*wanted, "Examples:"]:
            assert section in inspect.getdoc(member), f"{name} has no {section}"
