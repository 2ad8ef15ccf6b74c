import pytest

from pinstorm import units
from pinstorm.errors import UsageError


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("16MiB", 16 << 20),
        ("64KiB", 65536),
        ("1GiB", 1 << 30),
        ("1TiB", 1 << 40),
        ("4096", 4096),
        ("4097B", 4097),
        (" 2 MiB ", 2 << 20),
        (4096, 4096),
        (0, 0),
    ],
)
def test_parse_size(text: str | int, size_bytes: int) -> None:
    assert units.parse_size(text) == size_bytes


@pytest.mark.parametrize("value", ["16MB", "16 mib", "", "MiB", "1.5MiB", "-1", -1, True])
def test_parse_size_refuses_with_value_and_remedy(value: str | int) -> None:
    with pytest.raises(UsageError) as caught:
        units.parse_size(value)
    message = str(caught.value)
    assert str(value).lower() in message.lower()
    assert "; " in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("60s", 60), ("500ms", 0.5), ("2m", 120), ("1h", 3600), ("0s", 0), (3, 3), (0.5, 0.5)],
)
def test_parse_duration(text: str | float, seconds: float) -> None:
    assert units.parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("value", ["60", "s", "1 day", "-1s", -1, float("nan"), float("inf"), True])
def test_parse_duration_refuses(value: str | float) -> None:
    with pytest.raises(UsageError):
        units.parse_duration(value)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (100, "100 B"),
        (65536, "64 KiB"),
        (16 << 20, "16 MiB"),
        (2_621_440, "2.50 MiB"),
        (-4096, "-4 KiB"),
    ],
)
def test_format_bytes(size_bytes: int, text: str) -> None:
    assert units.format_bytes(size_bytes) == text


@pytest.mark.parametrize(
    ("time_ns", "text"),
    [
        (0, "0 ns"),
        (870, "870 ns"),
        (41_250, "41.2 us"),
        (999_400, "999 us"),
        (999_600, "1.00 ms"),
        (2_310_000, "2.31 ms"),
        (1_200_000_000, "1.20 s"),
    ],
)
def test_format_ns(time_ns: int, text: str) -> None:
    assert units.format_ns(time_ns) == text


def test_format_pages_and_seconds() -> None:
    assert units.format_pages(1) == "1 page"
    assert units.format_pages(4096) == "4096 pages"
    assert [units.format_seconds(s) for s in (7, 65, 7200)] == ["7 s", "1:05", "2:00:00"]
