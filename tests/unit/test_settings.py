import pytest
from pydantic import SecretStr, ValidationError

from router.cli.show.output import ranges
from router.settings import Settings
from router.wire.problems import INVALID_REQUEST, ProblemError, response, retry_after


def test_defaults_are_safe() -> None:
    settings = Settings()
    assert settings.host == "127.0.0.1"
    limits = settings.pool_limits()
    assert (limits.min_size, limits.max_size, limits.idle_s, limits.connect_timeout_s) == (5, 20, 30, 2)
    assert settings.reading_age_max_days >= 29 * 365


def test_every_setting_says_what_it_is() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_the_environment_and_what_overrides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOLTROUTE_PORT", "9000")
    monkeypatch.setenv("VOLTROUTE_HOST", "::1")
    assert (Settings(port=1234).port, Settings(port=1234).host) == (1234, "::1")
    monkeypatch.setenv("VOLTROUTE_POOL_MAX", "0")
    with pytest.raises(ValidationError):
        Settings()


def test_a_secret_is_never_shown() -> None:
    settings = Settings(catalog_dsn=SecretStr("postgresql://me:hunter2@db/volt"))
    assert "hunter2" not in repr(settings)
    assert settings.shown("catalog_dsn") == "postgresql://me:***@db/volt"


def test_retry_after_is_whole_seconds() -> None:
    for seconds, least, most in ((0, 1, 3), (0.2, 1, 3), (1.0, 1, 3), (1.5, 2, 4), (4.01, 5, 7), (60, 60, 66)):
        found = {int(retry_after(seconds)["Retry-After"]) for _ in range(300)}
        assert (min(found), max(found)) == (least, most)  # all of them come: nobody returns in one moment


def test_a_problem_as_a_response() -> None:
    made = response(ProblemError(INVALID_REQUEST, "limit: wrong", extensions={"errors": []}), "id-1")
    assert (made.status_code, made.media_type) == (422, "application/problem+json")
    assert b'"requestId":"id-1"' in made.body


@pytest.mark.parametrize(
    ("numbers", "text"), [([], ""), ([4], "4"), ([1, 2, 3, 7], "1-3 7"), ([0, 4, 8, 12], "0-12/4"), ([0, 2], "0 2")]
)
def test_ranges(numbers: list[int], text: str) -> None:
    assert ranges(numbers) == text


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("@/run/secrets/redis", "@/run/secrets/redis"),
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("rediss://me:secret@h/1?password=secret", "rediss://***@h/1"),
        ("redis://:pw/secret@h:1/0", "redis://***@h:1/0"),
        ("redis://:pw#secret@h:1/0", "redis://***@h:1/0"),
        ("redis://:se[cret@h:1/0", "redis://***@h:1/0"),
        ("redis://secret@h", "redis://***@h"),
        ("secret", "***"),
        ("http://secret", "***"),
    ],
)
def test_redis_is_shown_without_its_login(url: str, shown: str) -> None:
    assert Settings(redis_url=SecretStr(url)).shown("redis_url") == shown
