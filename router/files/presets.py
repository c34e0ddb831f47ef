"""Layouts of public export formats, made from what is known of them: by name, with who writes them."""

import re
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from router.files.layout import Label, Layout, Shape


@dataclass(frozen=True)
class Preset:
    """A known format. `title`: who exports it."""

    title: str
    layout: Layout

    @property
    def zone(self) -> str:
        """The zone of its times: what it is known to be, in the file, or to be given."""
        has_offset = {"iso", "epoch"} & set(self.layout.formats)
        return self.layout.zone or ("in the file" if has_offset else "--time-zone")


def _is(*texts: str) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, texts)), re.IGNORECASE)


_GREEN_BUTTON: Final = Layout(
    time=("DATE", "START TIME"),
    formats=("%Y-%m-%d %H:%M", "%m/%d/%Y %H:%M"),
    energy=(("USAGE (kWh)",), ("USAGE",), ("IMPORT (kWh)",)),
    label=Label.START,
    where={"TYPE": _is("Electric usage")},
)
_DATADIS: Final = Layout(
    day_hour=("Fecha", "Hora"),
    formats=("%d/%m/%Y", "%Y/%m/%d"),
    energy=(("Consumo_kWh|Consumo|AE_kWh",),),
    interval_s=3600,
    zone="Europe/Madrid",
    delimiter=";",
    decimal=",",
    device="CUPS",
)
_FLUVIUS: Final = Layout(
    time=("Van (datum)|Van datum|From (date)", "Van (tijdstip)|Van tijdstip|From (time)"),
    formats=("%d-%m-%Y %H:%M:%S", "%d/%m/%Y %H:%M:%S"),
    energy=(("Volume",),),
    label=Label.START,
    unit_column="Eenheid|Unit",
    zone="Europe/Brussels",
    delimiter=";",
    decimal=",",
    device="EAN-code|EAN code|EAN",
    where={"Register": re.compile("(Afname|Offtake).*")},
)
_ENERGY_MANAGER: Final = Layout(
    time=("moment",),
    formats=("epoch",),
    energy=(("value",),),
    unit="Wh",
    is_register=True,
    delimiter=";",
    device="ean",
    where={"code": _is("ellm")},
)

_ACTIVE: Final = "|".join(["Active energy Wh", *(f"Active energy Wh ({phase})" for phase in "12ABC")])

PRESETS: Final = MappingProxyType(
    {
        "pge": Preset("PG&E, California", replace(_GREEN_BUTTON, zone="America/Los_Angeles")),
        "comed": Preset("ComEd, Illinois", replace(_GREEN_BUTTON, zone="America/Chicago")),
        "peco": Preset("PECO, Pennsylvania", replace(_GREEN_BUTTON, zone="America/New_York")),
        "smart-meter-texas": Preset(
            "Smart Meter Texas",
            Layout(
                time=("USAGE_DATE", "USAGE_START_TIME"),
                formats=("%m/%d/%Y %H:%M",),
                energy=(("USAGE_KWH",),),
                label=Label.START,
                zone="America/Chicago",
                device="ESIID",
                where={"CONSUMPTION_SURPLUSGENERATION": _is("Consumption")},
            ),
        ),
        "octopus": Preset(
            "Octopus Energy",
            Layout(
                time=("Start",),
                energy=(("Consumption (kwh)",),),
                label=Label.START,
                zone="Europe/London",
            ),
        ),
        "fluvius": Preset("Fluvius, Belgium", _FLUVIUS),
        "homewizard": Preset(
            "HomeWizard (registers)",
            Layout(
                time=("time",),
                formats=("%Y-%m-%d %H:%M",),
                energy=(("Import T1 kWh", "Import T2 kWh"), ("Import kWh",)),
                is_register=True,
                zone="Europe/Amsterdam",
            ),
        ),
        "eloverblik": Preset(
            "Eloverblik, Denmark",
            Layout(
                time=("Fra_dato",),
                formats=("%d-%m-%Y %H:%M:%S",),
                energy=(("Mængde",),),
                label=Label.START,
                unit_column="Måleenhed",
                zone="Europe/Copenhagen",
                delimiter=";",
                decimal=",",
                device="MålepunktsID",
            ),
        ),
        "fingrid": Preset(
            "Fingrid Datahub, Finland",
            Layout(
                time=("Alkuaika|Start Time",),
                energy=(("Määrä|Quantity",),),
                label=Label.START,
                unit_column="Yksikkötyyppi|Unit Type",
                delimiter=";",
                decimal=",",
                device="Mittauspisteen tunnus|MeteringPointGSRN",
            ),
        ),
        "datadis": Preset("Datadis, Spain", _DATADIS),
        "enedis": Preset(
            "Enedis, France (load curve)",
            Layout(
                time=("Horodate|horodate ISO fin de pas",),
                energy=(("Valeur",), ("puissance moyenne (W)",)),
                unit="W",
                delimiter=";",
                decimal=",",
            ),
        ),
        "emporia": Preset(
            "Emporia Vue, by circuit",
            Layout(
                time=(re.compile(r"Time Bucket \(.*\)"),),
                formats=("%m/%d/%Y %H:%M:%S",),
                energy=((re.compile(r"(?P<device>.+) \(kWhs\)"),),),
                label=Label.START,
            ),
        ),
        "sense": Preset(
            "Sense Home (total usage)",
            Layout(
                time=("DateTime",),
                formats=("%Y-%m-%d %H:%M:%S",),
                energy=(("kWh",),),
                label=Label.START,
                where={"Name": _is("Total Usage")},
            ),
        ),
        "nem12": Preset("NEM12, Australia (imports)", Layout(shape=Shape.NEM12, zone="Etc/GMT-10")),
        "sdge": Preset(
            "SDG&E, California",
            Layout(
                time=("Date", "Start Time"),
                formats=("%m/%d/%Y %I:%M %p",),
                energy=(("Consumption",),),
                label=Label.START,
                zone="America/Los_Angeles",
                device="Meter Number",
            ),
        ),
        "sce": Preset(
            "SCE, California",
            Layout(
                time=("Energy consumption time period",),
                formats=("%Y-%m-%d %H:%M:%S",),
                energy=(("Usage(Real energy in kilowatt-hours)",),),
                label=Label.START,
                zone="America/Los_Angeles",
                skip=re.compile("Data for period|Energy"),
                negative_is_zero=True,
            ),
        ),
        "shelly": Preset(
            "Shelly EM, 3EM",
            Layout(
                time=("Date/time UTC",),
                formats=("%Y-%m-%d %H:%M",),
                energy=((_ACTIVE,),),
                label=Label.START,
                unit="Wh",
                zone="UTC",
                voltage=("Min V", "Max V"),
            ),
        ),
        "evcc": Preset(
            "evcc sessions (English)",
            Layout(
                time=("Finished",),
                formats=("%Y-%m-%d %H:%M:%S",),
                energy=(("Energy (kWh)",),),
                interval_s=0,
                device="Charging point",
            ),
        ),
        "enphase": Preset(
            "Enphase (consumption)",
            Layout(
                time=("Date/Time",),
                formats=("%Y-%m-%d %H:%M:%S %z", "%m/%d/%Y %H:%M"),
                energy=(("Energy Consumed (Wh)",),),
                label=Label.START,
                unit="Wh",
                skip=re.compile("Total"),
            ),
        ),
        "e3dc": Preset(
            "E3/DC (consumption)",
            Layout(
                time=("Zeitstempel",),
                formats=("%d.%m.%Y %H:%M:%S",),
                energy=(("Hausverbrauch [W]",),),
                label=Label.START,
                unit="W",
                zone="Europe/Berlin",
                delimiter=";",
                decimal=",",
            ),
        ),
        "e-distribuzione": Preset(
            "e-distribuzione, Italy",
            Layout(
                time=("Giorno",),
                formats=("%d/%m/%Y",),
                label=Label.START,
                interval_s=900,
                zone="Europe/Rome",
                delimiter=";",
                decimal=",",
                shape=Shape.DAYS,
            ),
        ),
        "dsmr-reader": Preset(
            "DSMR-reader (hours)",
            Layout(
                time=("Hour Start",),
                energy=((re.compile("Electricity 1 (?!Returned).*"), re.compile("Electricity 2 (?!Returned).*")),),
                label=Label.START,
            ),
        ),
        "tauron": Preset(
            "Tauron eLicznik, Poland",
            Layout(
                time=("Data",),
                formats=("%Y-%m-%d %H:%M",),
                energy=(("Wartość kWh",),),
                interval_s=3600,
                zone="Europe/Warsaw",
                delimiter=";",
                decimal=",",
                where={"Rodzaj": _is("pobór")},
            ),
        ),
        "go-e": Preset(
            "go-e Charger (sessions, German)",
            Layout(
                time=("Ende",),
                formats=("%d.%m.%Y %H:%M:%S",),
                energy=(("Energie [kWh]",),),
                interval_s=0,
                delimiter=";",
                decimal=",",
            ),
        ),
        "engie-nl": Preset(
            "Engie, Netherlands",
            Layout(
                time=("Datum",),
                energy=(("Verbruik",),),
                label=Label.START,
                zone="Europe/Amsterdam",
                device="EAN",
                where={"Type": _is("Elektriciteit")},
            ),
        ),
        "energy-manager-online": Preset("Energie Manager Online", _ENERGY_MANAGER),
        "home-assistant": Preset(
            "Home Assistant history",
            Layout(
                time=("last_changed",),
                energy=(("state",),),
                is_register=True,
                device="entity_id",
            ),
        ),
    }
)
