import pytest

from shards.errors import InvalidArgument
from shards.postgres.dsn import check_dsn, redact, redact_text, with_login
from shards.postgres.sql import quote_identifier

DSN = "postgresql://owner:s3cr%40t@db1:5432,db2:5433/volt?target_session_attrs=primary&password=also"


def test_another_login_on_the_same_database() -> None:
    changed = with_login(DSN, "writer", "p@ss/word")
    assert changed == "postgresql://writer:p%40ss%2Fword@db1:5432,db2:5433/volt?target_session_attrs=primary"


def test_no_password_is_shown() -> None:
    assert redact(DSN) == "postgresql://owner:***@db1:5432,db2:5433/volt?target_session_attrs=primary&password=***"
    assert redact("postgresql://db/volt") == "postgresql://db/volt"
    text = redact_text(f"cannot reach {DSN.partition('?')[0]}: refused")
    assert "s3cr" not in text
    assert "db1:5432" in text


@pytest.mark.parametrize("dsn", ["mysql://a:SECRET@b/c", "postgresql://a:SECRET@b", "host=b password=SECRET", ""])
def test_a_bad_dsn_is_refused_without_being_shown(dsn: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_dsn(dsn)
    assert "SECRET" not in str(caught.value)


def test_identifiers() -> None:
    assert quote_identifier('we"ird') == '"we""ird"'
    for name in ("", "a\0b", "x" * 64):
        with pytest.raises(ValueError, match="identifier"):
            quote_identifier(name)
