"""What is expected of devices: of one, and of those of which nothing else is known."""

import json

from shards.ratings import INTERVAL_S, Rating, Ratings


def test_what_is_not_known_of_a_device_is_as_of_all() -> None:
    ratings = Ratings(Rating(900.0, 11.0), {"M": Rating(power_max_kw=22.0), "N": Rating(interval_s=5.0)})
    assert ratings.of("M") == Rating(900.0, 22.0)
    assert ratings.of("OTHER") == Rating(900.0, 11.0)
    assert (ratings.interval_s(), ratings.interval_s("N"), Ratings().interval_s("X")) == (900.0, 5.0, INTERVAL_S)
    assert Ratings(Rating()).interval_s() == INTERVAL_S


def test_nothing_is_judged_where_nothing_is_known() -> None:
    assert Ratings().is_plain
    assert Ratings(Rating(900.0)).is_plain
    assert not Ratings(Rating(power_max_kw=1.0)).is_plain
    assert not Ratings(devices={"M": Rating(5.0)}).is_plain


def test_sql_gets_all_of_it() -> None:
    told = json.loads(Ratings(Rating(register_max_kwh=7.0), {"M": Rating(5.0)}).as_json())
    assert (told["interval_s"], told["power_max_kw"], told["register_max_kwh"]) == (INTERVAL_S, None, 7.0)
    assert told["devices"] == [{"device": "M", "interval_s": 5.0, "power_max_kw": None, "register_max_kwh": None}]
