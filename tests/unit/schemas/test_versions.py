"""Versions: one total order, Debian's, with Python's additions."""

import shutil
import subprocess
from functools import cmp_to_key

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from packaging.version import Version

from schemas.orders.package import PackageCondition, PackageSpec
from schemas.versions import check_version, version_key

_numbers = st.integers(0, 12).map(str)
_python = st.builds(
    "{}{}{}{}{}".format,
    st.sampled_from(["", "", "1!", "2!"]),
    st.lists(_numbers, min_size=1, max_size=4).map(".".join),
    st.one_of(st.just(""), st.builds("{}{}".format, st.sampled_from(["a", "b", "rc"]), _numbers)),
    st.one_of(st.just(""), st.integers(1, 12).map(".post{}".format)),
    st.one_of(st.just(""), _numbers.map(".dev{}".format)),
)
_debian = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["", "", "1:", "2:"]),
    st.integers(1, 12),
    st.lists(st.sampled_from([*"12a~+.-", "rc", "beta", ".1", "ubuntu"]), max_size=6).map("".join),
    st.sampled_from(["", "-1", "-2", "-1ubuntu1", "-1+deb12u2", "-1~bpo1"]),
)
_any = st.one_of(_python, _debian, st.text("019.ab~+:!-", max_size=8))


def _is_version(text: str) -> bool:
    try:
        return check_version(text) == text
    except ValueError:
        return False


_versions = _any.filter(_is_version)


@given(_versions, _versions, _versions)
def test_the_order_is_total(one: str, other: str, third: str) -> None:
    a, b, c = map(version_key, (one, other, third))
    assert (a < b) + (a == b) + (a > b) == 1
    assert not (a <= b <= c) or a <= c


@given(_any)
def test_each_version_has_a_key(text: str) -> None:
    if _is_version(text):
        version_key(text)


@given(_python, _python)
def test_it_is_pythons_order_for_pythons_versions(one: str, other: str) -> None:
    assert (version_key(one) < version_key(other)) == (Version(one) < Version(other))
    assert (version_key(one) == version_key(other)) == (Version(one) == Version(other))


@pytest.mark.full
@pytest.mark.skipif(shutil.which("dpkg") is None, reason="dpkg is not installed")
@given(_debian, _debian)
def test_it_is_debians_order_for_debians_versions(one: str, other: str) -> None:
    assume(_is_version(one) and _is_version(other))
    # Zeros, and what only Python has, are the two additions.
    assume(not any(part in one + other for part in ("rc", "a", ".0")))
    relation = {-1: "lt", 0: "eq", 1: "gt"}[_compare(one, other)]
    subprocess.run(["dpkg", "--compare-versions", one, relation, other], check=True)


def _compare(one: str, other: str) -> int:
    a, b = version_key(one), version_key(other)
    return (a > b) - (a < b)


def test_known_orders() -> None:
    ascending = [
        "1.0.dev1", "1.0a1", "1.0rc1", "1.0~rc1-1", "1.0", "1.0-1~bpo1", "1.0.post1", "1.0-2",
        "1.0+dfsg-1", "1.0.1", "1.1.1", "1.1.1a", "1.1.1n-0+deb11u1", "1.2", "1.10", "1:0.1",
    ]  # fmt: skip
    assert sorted(ascending, key=cmp_to_key(_compare)) == ascending
    assert version_key("1.0") == version_key("1") == version_key("1.0.0")
    assert version_key("2!1.0") == version_key("2:1")


@pytest.mark.parametrize(
    "text", ["latest", "", "v1", "1_0", "1 0", "1/0", "../1", "1-", "1!x", "1:2:3", "é", "1" * 65]
)
def test_what_does_not_compare_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a version|does not compare"):
        check_version(text)


@pytest.mark.parametrize(
    ("spec", "inside", "outside"),
    [
        ("demo", ["1", "99"], []),
        ("demo<2.1", ["2.0", "2.1rc1"], ["2.1", "2.1.0", "3"]),
        ("demo >= 1.2, <2", ["1.2", "1.2.0", "1.99"], ["1.1", "2"]),
        ("demo==1.0", ["1.0", "1"], ["1.0.1"]),
        ("Demo!=1", ["1.1"], ["1.0"]),
    ],
)
def test_specs(spec: str, inside: list[str], outside: list[str]) -> None:
    read = PackageSpec.parse(spec)
    assert read.name == "demo"
    assert PackageSpec.parse(str(read)) == read
    assert all(map(read.allows, inside))
    assert not any(map(read.allows, outside))


@pytest.mark.parametrize("text", ["", "<1", "demo<", "demo<latest", "demo 1", "demo<1,", "a b<1"])
def test_wrong_specs(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a|does not compare"):
        PackageSpec.parse(text)


def test_conditions() -> None:
    old = PackageCondition.parse("installed:demo<2.1")
    missing = PackageCondition.parse("missing:demo")
    assert old.holds({"demo": "2.0"})
    assert not old.holds({"demo": "2.1"})
    assert not old.holds({"other": "1"})
    assert missing.holds({"other": "1"})
    assert not missing.holds({"demo": "1"})
    with pytest.raises(ValueError, match="is not a condition"):
        PackageCondition.parse("absent:demo")
