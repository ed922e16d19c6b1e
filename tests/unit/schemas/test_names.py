"""Login names as words of the broker: never ambiguous, and shown as they are."""

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas import Report, State
from schemas.names import check_user, user_of_word, user_word
from tests.support.users import ODD_USERS

USERS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=80).filter(
    lambda text: not raised(text)
)


def raised(text: str) -> bool:
    try:
        check_user(text)
    except ValueError:
        return True
    return False


@given(USERS | st.sampled_from(ODD_USERS), USERS | st.sampled_from(ODD_USERS))
def test_each_login_name_has_its_own_word(one: str, other: str) -> None:
    word = user_word(one)
    assert re.fullmatch(r"[a-z0-9_:-]{1,120}", word)
    assert (user_word(one) == user_word(other)) is (one == other)
    assert user_word(one.swapcase()) != word or one.swapcase() == one


@given(USERS)
def test_a_word_tells_its_login_name(user: str) -> None:
    word = user_word(user)
    assert user_of_word(word) == (word if "::" in word else user)
    assert user_word(user_of_word(word) or "") == word


@given(st.from_regex(r"[a-z0-9_-]{1,63}", fullmatch=True))
def test_a_plain_name_stays_as_it_is(name: str) -> None:
    assert user_word(name) == name


@given(st.text("abc:0123456789f", max_size=12))
def test_what_no_login_name_has_is_no_word(word: str) -> None:
    user = user_of_word(word)
    assume(user is not None)
    assert user_word(user or "") == word


def test_short_names_of_any_letters_can_be_computed_from_their_words() -> None:
    for user in ODD_USERS:
        assert (user_of_word(user_word(user)) == user) is (len(user.encode()) <= 60)
    assert user_of_word(":zz") is user_of_word(":61") is user_of_word(":ff") is None


@pytest.mark.parametrize(
    "name", ["", "a/b", "a:b", "a\nb", "a\0b", " ada", "\udcff", "x" * 256, user_word("é" * 127)]
)
def test_what_no_system_lets_log_in_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a login name"):
        check_user(name)
    fields = {"job_id": "j", "workstation": "w", "state": State.RECEIVED}
    with pytest.raises(ValidationError, match="agent"):
        Report.model_validate({**fields, "agent": f"interactive-{name}"})


@given(USERS)
def test_a_report_carries_the_name_as_it_is(user: str) -> None:
    report = Report(job_id="j", workstation="w", state=State.RECEIVED, agent=f"interactive-{user}")
    assert Report.read(report.body()).agent == f"interactive-{user}"
