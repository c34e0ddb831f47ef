"""What readings of a kind are when they come in, and what an endpoint takes. Pure."""

import re
import struct
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
from msgspec.structs import astuple

from router.wire.complaints import UNKNOWN_FIELD, ItemError, explain, pointer_of
from router.wire.readings import Cells, Reading, energy_error, foreign_letters, reading_type
from shards.kinds import Kind, Type

_VALUES_MAX: Final = 16  # of a reading of few fields, on average: what has more commas or lines is not looked at
_SINGLE: Final = struct.Struct("f")
_DECLARABLE: Final = re.compile(r"[a-z][A-Za-z0-9]{0,39}")


@dataclass(slots=True)
class Items:
    """Readings of one kind, and the index of each in the request. A pair for each would be one object more."""

    indexes: Sequence[int]
    cells: list[Cells]

    def without(self, refused: Collection[int]) -> "Items":
        """Those whose index is not among these."""
        kept = [each for each in zip(self.indexes, self.cells, strict=True) if each[0] not in refused]
        return Items([index for index, _ in kept], [cells for _, cells in kept])


@dataclass(slots=True)
class Decoded:
    """Valid readings by kind, and an error for each other item."""

    readings: dict[Kind, Items] = field(default_factory=dict)
    errors: list[ItemError] = field(default_factory=list)
    ignored: int = 0  # values of fields that nobody declared, left out because a setting says so

    def move(self, by: int) -> None:
        """These are a request's items from index `by` on."""
        for items in self.readings.values():
            items.indexes = [index + by for index in items.indexes]
        self.errors = [msgspec.structs.replace(error, index=error.index + by) for error in self.errors]

    @property
    def valid(self) -> int:
        """Number of valid readings."""
        return sum(len(items.cells) for items in self.readings.values())

    def __len__(self) -> int:
        return self.valid + len(self.errors)


class KindShape:
    """How readings of one kind are decoded."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.type = reading_type(kind)
        trusting = reading_type(kind, trusting=True)
        self.one: msgspec.json.Decoder[Reading] = msgspec.json.Decoder(trusting)
        self.array: msgspec.json.Decoder[list[Reading]] = msgspec.json.Decoder(list[trusting])  # type: ignore[valid-type]
        # Where a device may send its count instead of an energy, a reading has one of them.
        self.energies = tuple(2 + kind.values.index(column) for column in kind.alternatives or ())
        self.choices = {f"/{field.name}": field.choices for field in kind.fields if field.choices}
        self.names = frozenset(self.type.__struct_fields__)
        self.retired = {field.name: field.retired for field in kind.retired}
        # What a column of half the width holds: a repeat must be equal to what is stored.
        self.singles = tuple(2 + at for at, field in enumerate(kind.fields) if field.type is Type.FLOAT4)

    def cells(self, readings: Iterable[Reading]) -> list[Cells]:
        """What the decoders above found. ValidationError when an ID holds what none may."""
        found = list(map(astuple, readings))
        try:
            foreign = foreign_letters([cells[0] for cells in found])
        except UnicodeEncodeError:
            raise msgspec.ValidationError from None
        if foreign:
            raise msgspec.ValidationError
        return found

    def convert(self, value: object) -> Cells | ItemError:
        """A reading that was parsed as any JSON."""
        try:
            return self.rounded(astuple(msgspec.convert(value, self.type)))
        except msgspec.ValidationError as error:
            told = explain(str(error), self.choices)
            return self._not_taken(value) if told[1] == UNKNOWN_FIELD else ItemError(0, *told)

    def _not_taken(self, value: object) -> ItemError:
        """The first field that is none, and what could be done about it."""
        name = next((name for name in value if name not in self.names), "") if isinstance(value, dict) else ""
        if name in self.retired:
            return ItemError(0, f"/{name}", "retired_field", f"was retired on {self.retired[name]}: it is refused")
        hint = f"; `voltroute field add {self.kind} {name}` declares it" if _DECLARABLE.fullmatch(name) else ""
        return ItemError(0, pointer_of(name), UNKNOWN_FIELD, f"is not a field of this reading{hint}")

    def rounded(self, cells: Cells) -> Cells:
        """The cells as the columns of half the width have them."""
        if not self.singles:
            return cells
        changed = list(cells)
        for at in self.singles:
            if changed[at] is not None:
                (changed[at],) = _SINGLE.unpack(_SINGLE.pack(changed[at]))
        return tuple(changed)

    def check(self, index: int, cells: Cells) -> ItemError | None:
        """What is wrong with a reading beside its fields' own limits."""
        if not self.energies:
            return None
        energy, register = (cells[at] for at in self.energies)
        if (energy is None) is not (register is None):
            return None
        return energy_error(self.kind, index, has_energy=energy is not None)

    def settle(self, items: Items, decoded: Decoded) -> None:
        """These are the readings of this kind, but for those with something wrong."""
        if self.singles:
            items = Items(items.indexes, list(map(self.rounded, items.cells)))
        if self.energies:
            energy, register = self.energies
            energies, registers = [cells[energy] for cells in items.cells], [cells[register] for cells in items.cells]
            if None in energies or registers.count(None) < len(registers):
                told = map(self.check, items.indexes, items.cells)
                errors = [wrong for wrong in told if wrong is not None]
                decoded.errors += errors
                items = items.without({error.index for error in errors})
        if items.cells:
            decoded.readings[self.kind] = items


class Shape:
    """What an endpoint takes: readings of one kind or of several, and how to tell them apart.

    `ignoring`: fields that nobody declared are left out, and counted, instead of refused.
    """

    def __init__(self, kinds: Sequence[Kind], *, ignoring: bool = False) -> None:
        self.ignoring = ignoring
        self.values_max = max(_VALUES_MAX, *(4 + len(kind.fields) for kind in kinds))
        self.kinds = {kind: KindShape(kind) for kind in kinds}
        self.by_id = {kind.id_name: kind for kind in kinds}
        self.kind = kinds[0] if len(kinds) == 1 else None
        # How the ID's name stands in an item that says it plainly.
        self.marks = [(f'"{kind.id_name}"'.encode(), kind) for kind in kinds]
