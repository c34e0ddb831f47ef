"""Writers of export formats, from descriptions of them: made-up customers, the formats' own quirks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby, pairwise
from zoneinfo import ZoneInfo

Value = tuple[datetime, float | None]  # start of an interval (an instant), its kWh; None: the cell is empty


@dataclass(frozen=True)
class Export:
    """A format: how its file looks, and what makes a row. Where `zone` is None, the test names one."""

    preset: str
    zone: str
    header: str
    row: Callable[[datetime, datetime, str], str]  # start and end in local time, the value as text
    minutes: int = 15
    decimal: str = "."
    scale: float = 1.0  # units in a kWh (or in a kWh an interval, of an average power)
    device: str | None = None  # that the rows name; else the test does
    is_register: bool = False
    has_offset: bool = False
    has_zone: bool = True
    repeated_hour: bool = True  # False: its rows cannot tell the doubled hour, and say so or have only one
    noise: tuple[str, ...] = ()  # rows that hold no reading of ours

    def lines(self, values: Sequence[Value]) -> list[str]:
        """A line for each value."""
        zone, step, count = ZoneInfo(self.zone), timedelta(minutes=self.minutes), 5000.0
        found = []
        for start, kwh in values:
            if self.is_register and kwh is not None:
                count += kwh
            number = None if kwh is None else (count if self.is_register else kwh) * self.scale
            text = "" if number is None else f"{number:.6f}".rstrip("0").rstrip(".").replace(".", self.decimal)
            found.append(self.row(start.astimezone(zone), (start + step).astimezone(zone), text))
        return found

    def text(self, lines: Sequence[str]) -> str:
        """The whole file."""
        return self.header + "".join(f"{line}\n" for line in [*self.noise, *lines])


def start_of(zone: str, year: int, month: int, day: int, hour: int = 0) -> datetime:
    """A local time as an instant."""
    return datetime(year, month, day, hour, tzinfo=ZoneInfo(zone)).astimezone(UTC)


def _hour_of_day(end: datetime) -> int:
    """The number of the hour of the local day that ends then."""
    last = end.astimezone(UTC) - timedelta(seconds=1)
    midnight = last.astimezone(end.tzinfo).replace(hour=0, minute=0, second=0, fold=0)
    return int((last - midnight.astimezone(UTC)) / timedelta(hours=1)) + 1


def _day_of(end: datetime) -> datetime:
    return (end.astimezone(UTC) - timedelta(seconds=1)).astimezone(end.tzinfo)


def _iso(moment: datetime) -> str:
    return moment.isoformat()


_PGE_TOP = 'Name,JANE DOE\nAddress,"1 EXAMPLE ST, TOWN CA 90000"\nAccount Number,1234567890\nService,Service 1\n\n'
_SDGE_TOP = "".join(
    f"{line}\n"
    for line in [
        "Name,JANE DOE",
        "Address,1 EXAMPLE AVENUE  San Diego CA 92101",
        "Account Number,0000000000",
        "Disclaimer,The information in this file is as it is",
        "Title,CSV Export Electric Meter(s)",
        "Resource,Electric",
        "Meter Number,00000000",
        "Interval UOM,Minute(s)",
        "UOM,kWh",
        "Meter Number,Date,Start Time,Duration,Consumption,Generation,Net",
    ]
)
_SCE_TOP = (
    'Energy Usage Information\n"For location: 1 FAKE ST"\n\nMeter Reading Information\n"Type: Electricity"\n\n'
    '"Data for period starting: 2026-01-15 00:00:00  for 24 hours"\n'
    "Energy consumption time period,Usage(Real energy in kilowatt-hours),Reading quality\n"
)
_NL, _BE, _TX = "Europe/Amsterdam", "Europe/Brussels", "America/Chicago"

EXPORTS = [
    Export(
        "pge",
        "America/Los_Angeles",
        _PGE_TOP + "TYPE,DATE,START TIME,END TIME,USAGE (kWh),COST,NOTES\n",
        lambda a, b, v: f"Electric usage,{a:%Y-%m-%d,%H:%M},{b - timedelta(minutes=1):%H:%M},{v},$0.09",
        noise=("Natural gas usage,2026-01-15,00:00,23:59,1.0,$1.00",),
    ),
    Export(
        "comed",
        _TX,
        "\ufeff" + _PGE_TOP + "TYPE,DATE,START TIME,END TIME,USAGE,UNITS,COST,NOTES\n",
        lambda a, b, v: f"Electric usage,{a:%Y-%m-%d,%H:%M},{b - timedelta(minutes=1):%H:%M},{v},kWh,$0.02,",
        minutes=30,
    ),
    Export(
        "smart-meter-texas",
        _TX,
        "ESIID,USAGE_DATE,REVISION_DATE,USAGE_START_TIME,USAGE_END_TIME,USAGE_KWH,ESTIMATED_ACTUAL,"
        "CONSUMPTION_SURPLUSGENERATION\n",
        lambda a, b, v: (
            f"'10000000000000001,{a:%m/%d/%Y},{a:%m/%d/%Y} 07:40:29, {a:%H:%M}, {b:%H:%M},{v},A,Consumption"
        ),
        device="10000000000000001",
        noise=("'10000000000000001,01/15/2026,,00:00,00:15,9.1,A,Surplus Generation",),
    ),
    Export(
        "octopus",
        "Europe/London",
        "Consumption (kwh), Estimated Cost Inc. Tax (p), Start, End\n",
        lambda a, b, v: f"{v}, 0.71, {_iso(a)}, {_iso(b)}",
        minutes=30,
        has_offset=True,
    ),
    Export(
        "fluvius",
        _BE,
        "\ufeffVan (datum);Van (tijdstip);Tot (datum);Tot (tijdstip);EAN-code;Meter;Metertype;Register;Volume;Eenheid;"
        "Validatiestatus;Omschrijving\n",
        lambda a, b, v: (
            f'{a:%d-%m-%Y;%H:%M:%S};{b:%d-%m-%Y;%H:%M:%S};="541448800000000001";1SAG1;Digitale meter;Afname Nacht;{v};'
            "kWh;Uitgelezen;"
        ),
        decimal=",",
        device="541448800000000001",
        noise=(
            '15-01-2026;00:00:00;15-01-2026;00:15:00;="541448800000000001";1SAG1;x;Injectie Nacht;7,1;kWh;Uitgelezen;',
        ),
    ),
    Export(
        "homewizard",
        _NL,
        "time,Import T1 kWh,Import T2 kWh,Export T1 kWh,Export T2 kWh,L1 max W,L2 max W,L3 max W\n",
        lambda a, _b, v: f"{a:%Y-%m-%d %H:%M},{v},200.25,50.000,30.000,1200,0,0",
        is_register=True,
    ),
    Export(
        "eloverblik",
        "Europe/Copenhagen",
        "\ufeffMålepunktsID;Fra_dato;Til_dato;Mængde;Måleenhed;Kvalitet;Type\n",
        lambda a, b, v: f"571313000000000001;{a:%d-%m-%Y %H:%M:%S};{b:%d-%m-%Y %H:%M:%S};{v};KWH;Målt;Tidsserie",
        minutes=60,
        decimal=",",
        device="571313000000000001",
    ),
    Export(
        "fingrid",
        "UTC",
        "MeteringPointGSRN;Product Type;Resolution;Unit Type;Reading Type;Start Time;Quantity;Quality\n",
        lambda a, _b, v: f"643000000000000001;8716867000030;PT15M;kWh;BN01;{a:%Y-%m-%dT%H:%M:%SZ};{v};OK",
        decimal=",",
        device="643000000000000001",
        has_offset=True,
    ),
    Export(
        "datadis",
        "Europe/Madrid",
        "CUPS;Fecha;Hora;Consumo_kWh;Metodo_obtencion\n",
        lambda _a, b, v: f"ES0000000000000001AA;{_day_of(b):%d/%m/%Y};{_hour_of_day(b)};{v};R",
        minutes=60,
        decimal=",",
        device="ES0000000000000001AA",
    ),
    Export(
        "enedis",
        "Europe/Paris",
        "Identifiant PRM;Type de donnees;Date de debut;Date de fin;Grandeur physique;Unite;Pas en minutes\n"
        "00000000000000;Courbe de charge;01/09/2018;21/08/2020;Energie active;W;\n\nHorodate;Valeur\n",
        lambda _a, b, v: f"{_iso(b)};{v}",
        minutes=30,
        scale=2000,
        has_offset=True,
    ),
    Export(
        "emporia",
        _TX,
        "Time Bucket (America/Chicago),Vue-Mains_A (kWhs),Vue Spare (kWhs)\n",
        lambda a, _b, v: f"{a:%m/%d/%Y %H:%M:%S},{v},No CT",
        minutes=60,
        device="Vue-Mains_A",
        has_zone=False,
    ),
    Export(
        "sense",
        "America/New_York",
        "# Please note that there may be discrepancies\n"
        "DateTime,Device ID,Name,Device Type,Device Make,Device Model,Device Location,Avg Wattage,kWh\n",
        lambda a, _b, v: f"{a:%Y-%m-%d %H:%M:%S},mains,Total Usage,,,,,812.000,{v}",
        minutes=60,
        has_zone=False,
        noise=("2026-01-15 00:00:00,63ac628e,Dryer,Dryer,,,,66.569,0.067",),
    ),
    Export(
        "sdge",
        "America/Los_Angeles",
        _SDGE_TOP,
        lambda a, _b, v: (
            f'"09999999","{a.month}/{a.day}/{a.year}","{a.strftime("%I:%M %p").lstrip("0")}","15","{v}","","{v}"'
        ),
        device="09999999",
    ),
    Export(
        "sce",
        "America/Los_Angeles",
        _SCE_TOP,
        lambda a, b, v: f'"{a:%Y-%m-%d %H:%M:%S}\xa0to {b:%Y-%m-%d %H:%M:%S}","{v}",""',
        minutes=60,
        noise=(
            '"Data for period starting: 2026-01-16 00:00:00  for 24 hours"',
            "Energy consumption time period,Usage(Real energy in kilowatt-hours),Reading quality",
        ),
    ),
    Export(
        "shelly",
        "UTC",
        "Date/time UTC,Active energy Wh (1),Returned energy Wh (1),Min V,Max V\n",
        lambda a, _b, v: f"{a:%Y-%m-%d %H:%M},{v},0.00,229.0,231.0",
        minutes=10,
        scale=1000,
    ),
    Export(
        "evcc",
        "Europe/Berlin",
        "\ufeffCreated,Finished,Charging point,Identifier,Vehicle,Odometer (km),Meter start (kWh),Meter stop (kWh),"
        "Energy (kWh),Charge duration,Solar (%),Cost,Price/kWh\n",
        lambda a, b, v: (
            f"{a:%Y-%m-%d %H:%M:%S},{b:%Y-%m-%d %H:%M:%S},Garage 1,,Auto,,1000.0,,{v},15m0s,40.0,3.10,0.248,"
        ),
        device="Garage-1",
        has_zone=False,
    ),
    Export(
        "enphase",
        "America/New_York",
        "Date/Time,Energy Produced (Wh),Energy Consumed (Wh),Exported to Grid (Wh),Imported from Grid (Wh)\n",
        lambda a, _b, v: f"{a:%m/%d/%Y %H:%M},0,{v},0,26",
        scale=1000,
        has_zone=False,
        noise=("Total,0,999,0,26",),
    ),
    Export(
        "e3dc",
        "Europe/Berlin",
        '"Zeitstempel";"Ladezustand [%]";"Solarproduktion [W]";"Netzbezug [W]";"Hausverbrauch [W]"\n',
        lambda a, _b, v: f"{a:%d.%m.%Y %H:%M:%S};45;0;100;{v}",
        minutes=60,
        decimal=",",
        scale=1000,
    ),
    Export(
        "dsmr-reader",
        _NL,
        "Hour Start,Electricity 1 (Dutch Users: Low Tariff),Electricity 2 (Dutch Users: Normal Tariff),"
        "Electricity 1 Returned (Dutch Users: Low Tariff),Electricity 2 Returned (Dutch Users: Normal Tariff),Gas\n",
        lambda a, _b, v: f"{_iso(a)},{v},0,9,9,0.032",
        minutes=60,
        has_offset=True,
    ),
    Export(
        "tauron",
        "Europe/Warsaw",
        "Data;Strefa; Wartość kWh;Rodzaj;\n",
        lambda _a, b, v: f"{_day_of(b):%Y-%m-%d} {b.hour or 24}:00;T1;{v};pobór;",
        minutes=60,
        decimal=",",
        noise=("2026-01-15 1:00;T1;0,7;oddanie;",),
    ),
    Export(
        "go-e",
        "Europe/Berlin",
        "Session Number;Session Identifier;Start;Ende;Dauer gesamt;max. Leistung [kW];Energie [kWh]\n",
        lambda a, b, v: f"23;400001_17;{a:%d.%m.%Y %H:%M:%S};{b:%d.%m.%Y %H:%M:%S};00:15:00;11,02;{v}",
        decimal=",",
        has_zone=False,
    ),
    Export(
        "engie-nl",
        _NL,
        '"Datum","EAN","Verbruik","Type","Piek"\n',
        lambda a, _b, v: f'"{_iso(a)}","871687000000000001","{v}","Elektriciteit","false"',
        minutes=60,
        device="871687000000000001",
        has_offset=True,
        noise=('"2026-01-15T00:00:00+01:00","871687000000000002","0.4","Gas","0"',),
    ),
    Export(
        "energy-manager-online",
        _NL,
        "\nname;ean;code;moment;moment-date;value;factor;type\n",
        lambda a, _b, v: f"Home1;871717000000000001;ellm;{a.timestamp():.0f};{a:%Y-%m-%d %H:%M:%S};{v};0.001;0",
        scale=1000,
        device="871717000000000001",
        is_register=True,
        has_offset=True,
        noise=("Home1;871717000000000001;eltm;1767222000;2026-01-01 00:00:00;33038920;-0.001;0",),
    ),
    Export(
        "home-assistant",
        "UTC",
        "entity_id,state,last_changed\n",
        lambda a, _b, v: f"sensor.energy_meter_total,{v or 'unavailable'},{a:%Y-%m-%dT%H:%M:%S.000Z}",
        device="sensor.energy_meter_total",
        is_register=True,
        has_offset=True,
    ),
]


def nem12(values: Sequence[Value]) -> str:
    """Days of 30 minutes in UTC+10, which are whole; an empty cell where a value is missing."""
    rows = ["100,NEM12,200506081149,UNITEDDP,NEMMCO", "200,NEM1201009,E1B1,1,E1,N1,01009,kWh,30,20050610"]
    local = [(start + timedelta(hours=10), kwh) for start, kwh in values]
    for day, group in groupby(local, key=lambda each: each[0].date()):
        cells = ["" if kwh is None else f"{kwh:.4f}" for _, kwh in group]
        rows.append(f"300,{day:%Y%m%d},{','.join(cells)},A,,,20260310121004,20260310182204")
    rows += [
        "200,NEM1201009,E1B1,2,B1,,01009,kWh,30,20050610",
        "300,20260115," + "7," * 48 + "A,,,20260310121004,",
        "900",
    ]
    return "\n".join(rows) + "\n"


def a_row_a_day(days: Sequence[tuple[datetime, Sequence[float | None]]]) -> str:
    """e-distribuzione: 96 quarter hours a row, a delimiter at its end."""
    labels = [f"{q // 4:02}:{q % 4 * 15:02}" for q in range(96)] + ["00:00"]
    header = "Giorno;" + ";".join(f"{a}-{b}" for a, b in pairwise(labels))
    rows = [header]
    for day, kwh in days:
        cells = ["" if each is None else f"{each:.3f}".replace(".", ",") for each in kwh]
        rows.append(f'"{day:%d/%m/%Y}";' + ";".join(f'"{cell}"' for cell in cells) + ";")
    return "\n".join(rows) + "\n"
