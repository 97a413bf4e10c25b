"""The gates that ask whether numbers and names of the source are in its translation."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gate_rows import generated, translated, verdict
from training.gates.chinese_numbers import chinese_numbers
from training.gates.english_numbers import english_numbers
from training.gates.names_kept import NamesKept, names
from training.gates.numbers_kept import NumbersKept

WELL = "well"
LOST, CHANGED = "reject: a number in digits is missing", "reject: a number has changed"
MISSING, ADDED = "doubt: a number in words is missing", "doubt: a number was added"
_HAN = "零一二三四五六七八九"
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_ONES = tuple(
    re.findall(
        "[a-z]+",
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen",
    )
)


def in_chinese(number: int) -> str:
    """A number below a hundred million, as it is read."""
    if number >= 10_000:
        rest = number % 10_000
        gap = "零" if 0 < rest < 1000 else ""
        return in_chinese(number // 10_000) + "万" + (gap + in_chinese(rest) if rest else "")
    written, zero = "", False
    for place, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = number // place % 10
        if digit:
            written += ("零" if zero and written else "") + _HAN[digit] + name
            zero = False
        else:
            zero = True
    return written or _HAN[0]


def in_english(number: int) -> str:
    for scale, name in ((10**6, "million"), (1000, "thousand"), (100, "hundred")):
        if number >= scale:
            rest = f" and {in_english(number % scale)}" if number % scale else ""
            return f"{in_english(number // scale)} {name}{rest}"
    if number < 20:
        return _ONES[number]
    return _TENS[number // 10] + (f"-{_ONES[number % 10]}" if number % 10 else "")


@given(st.integers(2, 99_999_999))
def test_a_number_is_the_same_in_all_its_forms(number: int) -> None:
    value = Fraction(number)
    for written in (f"{number}", f"{number:,}", in_english(number)):
        assert any(value in one.values for one in english_numbers(f"about {written} cats"))
    for written in (f"{number}", f"{number:,}", in_chinese(number)):
        assert any(value in one.values for one in chinese_numbers(f"大约{written}只猫"))


@given(st.integers(2, 9999), st.integers(2, 9999))
def test_a_number_in_digits_is_never_taken_for_another(one: int, other: int) -> None:
    expected = WELL if one == other else LOST
    assert verdict(NumbersKept().check, translated(f"{one} cats", f"{in_chinese(other)}只猫")) == expected


@pytest.mark.parametrize(
    ("english", "chinese", "expected"),
    [
        ("twenty-three cats", "二十三只猫", WELL),
        ("1,000 people", "一千人", WELL),
        ("1,000 people", "1千人", WELL),
        ("2.5 million people", "250万人", WELL),
        ("two cats", "两只猫", WELL),
        ("a pair of shoes, two socks", "一双鞋和一对袜子", WELL),
        ("three hundred and five", "三百零五", WELL),
        ("a hundred and twenty", "一百二", WELL),
        ("50% off", "五折，便宜百分之五十", WELL),
        ("50% of them", "其中五成", WELL),
        ("half of 10", "10的一半", WELL),
        ("3/4 full", "四分之三满", WELL),
        ("½ cup", "半杯", WELL),
        ("in the 1990s", "在20世纪90年代", WELL),
        ("in 1984", "在一九八四年", WELL),
        ("May 5, 2020", "2020年5月5日", WELL),
        ("at 7 pm", "晚上7点", WELL),
        ("at 7 pm", "19点", WELL),
        ("it is 3:30", "现在是三点半", WELL),
        ("at 10:00", "在十点", WELL),
        ("a dozen eggs", "十二个鸡蛋", WELL),
        ("two dozen eggs", "24个鸡蛋", WELL),
        ("10 km", "十公里", WELL),
        ("5kg", "5公斤", WELL),
        ("3.5 m", "三点五米", WELL),
        ("Number ７", "7号", WELL),
        ("One of them is first.", "其中之一是最好的。", WELL),
        ("a sandwich", "三明治", WELL),
        ("a cat, just in case", "一只猫，以防万一", WELL),
        ("together they are very fast", "他们一起十分快", WELL),
        ("a two-hump camel", "双峰骆驼", WELL),
        ("three cats", "两只猫", CHANGED),
        ("twenty-three cats", "二十二只猫", CHANGED),
        ("3 cats", "两只猫", LOST),
        ("1,000 people", "一百人", LOST),
        ("room 101", "房间", LOST),
        ("50% off", "打折", LOST),
        ("two friends", "朋友们", MISSING),
        ("some cats", "5只猫", ADDED),
        ("some cats", "五只猫", WELL),
    ],
)
def test_numbers_in_a_translation_into_chinese(english: str, chinese: str, expected: str) -> None:
    assert verdict(NumbersKept().check, translated(english, chinese)) == expected


@pytest.mark.parametrize(
    ("chinese", "english", "expected"),
    [
        ("两只猫", "two cats", WELL),
        ("两只猫", "a pair of cats", WELL),
        ("二十三个人", "23 people", WELL),
        ("250万人", "2,500,000 people", WELL),
        ("十分漂亮，万一下雨", "very beautiful, if it rains", WELL),
        ("一只猫", "a cat", WELL),
        ("星期三", "Wednesday", WELL),
        ("百分之五十", "half", WELL),
        ("三只猫", "two cats", CHANGED),
        ("23个人", "many people", LOST),
        ("三只猫", "cats", MISSING),
    ],
)
def test_numbers_in_a_translation_into_english(chinese: str, english: str, expected: str) -> None:
    assert verdict(NumbersKept().check, translated(chinese, english, into="en")) == expected


def test_of_generated_pairs_each_must_keep_the_others_numbers() -> None:
    check = NumbersKept().check
    assert verdict(check, generated("How many?|3 cats.", "几只？|三只猫。")) == WELL
    assert verdict(check, generated("How many?|Some cats.", "几只？|3只猫。")) == LOST
    assert verdict(check, generated("How many?|3 cats.", "几只？|一些猫。")) == LOST


@pytest.mark.parametrize(
    ("english", "chinese", "expected"),
    [
        ("See https://example.org/a for Paris.", "详见 https://example.org/a，关于巴黎。", WELL),
        ("Flight AF447 left.", "航班 AF447 已起飞。", WELL),
        ("A B-52 bomber and a 3D film", "一架 B-52 轰炸机和一部三维电影", WELL),
        ("It takes 10km and 1990s cars.", "要走10公里，还有90年代的车。", WELL),
        ("A photo of Steve Jobs.", "史蒂夫·乔布斯的照片。", WELL),
        ("A photo of Steve Jobs.", "Steve Jobs 的照片。", WELL),
        ("The sign reads “STOP”.", "牌子上写着“停”。", WELL),
        ("The sign reads “STOP”.", "牌子上写着 STOP。", WELL),
        ("He came on Monday in May.", "他五月的星期一来的。", WELL),
        ("A cat 😀 and `x = 1`", "一只猫 😀 和 `x = 1`", WELL),
        ("See https://example.org/a for more.", "详见网站。", "reject: address is missing"),
        ("Write to me@example.org now.", "现在写信给我。", "reject: address is missing"),
        ("Flight AF447 left.", "航班已起飞。", "reject: code is missing"),
        ("A photo of Steve Jobs.", "一个男人的照片。", "doubt: a name is missing"),
        ("The FBI came.", "他们来了。", "doubt: a name is missing"),
        ("The sign reads “STOP”.", "牌子上有字。", "doubt: a quotation is missing"),
        ("A sports car.", "一辆 Ferrari 跑车。", "doubt: Latin words were added"),
    ],
)
def test_names_in_a_translation_into_chinese(english: str, chinese: str, expected: str) -> None:
    assert verdict(NamesKept().check, translated(english, chinese)) == expected


@pytest.mark.parametrize(
    ("chinese", "english", "expected"),
    [
        ("一台 iPhone 手机，型号 A2890。", "An iPhone, model A2890.", WELL),
        ("一台 iPhone 手机。", "A telephone.", "doubt: a name is missing"),
        ("型号 A2890。", "The model.", "reject: code is missing"),
    ],
)
def test_names_in_a_translation_into_english(chinese: str, english: str, expected: str) -> None:
    assert verdict(NamesKept().check, translated(chinese, english, into="en")) == expected


def test_names_are_capitals_inside_sentences() -> None:
    assert names("Yesterday Tim Cook met the Queen of England in New York.") == [
        "Tim Cook",
        "Queen of England",
        "New York",
    ]
    assert names("WELCOME TO THE SHOW") == []
    assert names("Here. There it is. Where?") == []
