"""What a device's rating says of its readings, in SQL: which are implausible, and how many are expected."""

from typing import Final

ROUNDING_KWH: Final = 0.0005  # more than the largest power allows: what rounding to Wh may add
# With nothing to tell devices apart, nothing is joined and nothing is judged.
_RATED: Final = """LEFT JOIN jsonb_to_recordset({ratings}::jsonb -> 'devices')
        AS rating (device text, interval_s float8, power_max_kw float8) ON rating.device COLLATE "C" = """
_INTERVAL: Final = "coalesce(rating.interval_s, ({ratings}::jsonb ->> 'interval_s')::float8)"
_POWER: Final = "coalesce(rating.power_max_kw, ({ratings}::jsonb ->> 'power_max_kw')::float8)"
_ALLOWED: Final = f"({_POWER} * {_INTERVAL} / 3600 + {ROUNDING_KWH})"
_IMPLAUSIBLE: Final = f"coalesce(h.{{energy}} > {_ALLOWED}, false)"


def joined(device: str, *, judged: bool) -> str:
    """A join of the rating of `device` (SQL)."""
    return _RATED + device if judged else ""


def filled(template: str, ratings: str, *, judged: bool) -> str:
    """`{rated}` joins the rating of a reading `h`, and `{implausible}` asks whether it has more than that allows.

    `{allowed}`: the most energy that a reading may have, in kWh; `{interval}`: seconds between two; `ratings`: the
    parameter that holds the ratings.
    """
    texts = {
        "{rated}": joined("h.{id}", judged=judged),
        "{implausible}": _IMPLAUSIBLE if judged else "false",
        "{allowed}": _ALLOWED if judged else "NULL::float8",
        "{interval}": _INTERVAL if judged else "NULL::float8",
    }
    for placeholder, text in texts.items():
        template = template.replace(placeholder, text)
    return template.replace("{ratings}", ratings)
