"""What the names of columns say."""

from __future__ import annotations

import pytest

from recgpt.init import names


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("userID", ["user", "id"]),
        ("user_id", ["user", "id"]),
        ("User Id", ["user", "id"]),
        ("userid", ["user", "id"]),
        ("reviewerID", ["reviewer", "id"]),
        ("play_time_ms", ["play", "time", "ms"]),
        ("用户id", ["用户", "id"]),
        ("paid", ["paid"]),
        ('"time" (s)', ["time", "s"]),
        ("", []),
    ],
)
def test_tokens(name: str, words: list[str]) -> None:
    assert names.tokens(name) == words


@pytest.mark.parametrize("name", ["user", "user_id", "UserID", "uid", "customer", "visitorid", "msno", "用户"])
def test_names_of_users(name: str) -> None:
    assert names.id_score(name, names.USER, names.USER_WEAK) > 2.9


@pytest.mark.parametrize(
    "name", ["user_age", "num_users", "user agent", "follow_user_num", "username_length", "device_type", "item_id", "x"]
)
def test_names_of_no_users(name: str) -> None:
    assert names.id_score(name, names.USER, names.USER_WEAK) == 0


def test_clearer_names_win() -> None:
    def user(name: str) -> float:
        return names.id_score(name, names.USER, names.USER_WEAK)

    assert user("user_id") > user("customer_id") > user("session_id") > user("sas_user")


@pytest.mark.parametrize("name", ["item", "asin", "movieId", "video_id", "product_id", "sku", "track"])
def test_names_of_items(name: str) -> None:
    assert names.id_score(name, names.ITEM, names.ITEM_WEAK) > 2.9


@pytest.mark.parametrize("name", ["item_price", "video_duration", "news_category", "user"])
def test_names_of_no_items(name: str) -> None:
    assert names.id_score(name, names.ITEM, names.ITEM_WEAK) == 0


def test_names_of_clocks() -> None:
    for name in ("ts", "timestamp", "event_time", "created_at", "unixReviewTime", "time_ms", "when"):
        assert names.time_score(name) > 0, name
    for name in ("upload_dt", "birth_date", "play_time", "watch_time_ms", "register_time", "item", "timezone"):
        assert names.time_score(name) == 0, name


def test_names_of_positions() -> None:
    for name in ("pos", "order", "sas_pos", "seq", "row_number"):
        assert names.order_score(name) > 0, name
    for name in ("order_id", "order_date", "slot_position", "price"):
        assert names.order_score(name) == 0, name


def test_names_of_what_is_measured_after_the_event() -> None:
    """Whole words: a duration holds the letters of a ratio, a display those of a play."""
    for name in ("play_time", "watch_ratio", "show_cnt", "like_user_num", "comment_stay_time", "finish", "counts"):
        assert names.is_after(name), name
    for name in ("video_duration", "registration", "display", "player", "country", "tab"):
        assert not names.is_after(name), name
