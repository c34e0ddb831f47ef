"""Which kinds can be summed up in whole parts."""

from dataclasses import replace

import pytest

from shards.kinds import METER, VEHICLE, Field, Kind, Role
from shards.storage import parts

BOUNDED = Field("kwh", "kwh", "", role=Role.ENERGY, minimum=-5, maximum=1e9)


@pytest.mark.parametrize(
    ("field", "are_whole"),
    [
        (BOUNDED, True),
        (replace(BOUNDED, maximum=1e9 + 1), False),
        (replace(BOUNDED, minimum=-1e10), False),
        (replace(BOUNDED, minimum=None), False),
        (replace(BOUNDED, maximum=None), False),
        (replace(BOUNDED, role=Role.TEMPERATURE, maximum=None), False),
        (replace(BOUNDED, role=Role.NONE, maximum=None), True),  # it is not summed up
    ],
)
def test_sums_are_whole_where_the_largest_value_fits(field: Field, are_whole: bool) -> None:
    kind = Kind("charger", "chargerId", "charger_id", "", (field,))
    assert parts.are_whole(kind) is are_whole
    column = {Role.ENERGY: parts.energy, Role.TEMPERATURE: parts.temperature}.get(field.role)
    if column is not None:
        assert column(kind).startswith("round(") is are_whole


def test_the_built_in_kinds_are() -> None:
    assert parts.are_whole(METER)
    assert parts.are_whole(VEHICLE)
