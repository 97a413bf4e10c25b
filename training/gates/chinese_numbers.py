"""Numbers in Chinese: 二十三, 两百, 一百零五, 1.5万, 三点五, 二〇二三, 百分之五十, 五成, 四分之三, 半, 双.

A numeral is firm when it is a number for sure: it has a place value (二十三), or a measure word follows it (三只).
In 一起, 十分, 万一 or 三明治 it is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction

from training.gates.written_number import Number, number, plain, take

_DIGIT = {character: value for value, character in enumerate("零一二三四五六七八九")}
_DIGIT |= {character: value for value, character in enumerate("〇壹贰叁肆伍陆柒捌玖")}
_DIGIT |= {"两": 2, "兩": 2, "貳": 2, "參": 3, "陸": 6, "俩": 2, "倆": 2, "仨": 3}
_PLACE = {"十": 10, "拾": 10, "百": 100, "佰": 100, "千": 1000, "仟": 1000}
_MYRIAD = {"万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
_NUMERAL = "".join((*_DIGIT, *_PLACE, *_MYRIAD))
_PLACES = "".join((*_PLACE, *_MYRIAD))
_MEASURES = (
    "个個只隻条條张張辆輛位名头頭匹座栋间間把朵本件块塊杯瓶碗盘盤群对對双雙年月日号號点點时時秒元岁歲米公里斤克度层層楼樓次种種人"
    "支枝棵根片顶頂艘架台幅副套颗顆袋盒级級"
)
_FULL_HOUR = re.compile(r"(?<=\d):00\b")
_DIGITS = re.compile(
    r"(?<![\d.])(?P<value>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?)\s*(?:(?P<scale>[十百千万萬亿億]{1,2})|(?P<percent>%))?"
)
_RUN = re.compile(f"[{_NUMERAL}]+(?:点[{''.join(_DIGIT)}]+)?")
_PARTS = re.compile(f"([{_NUMERAL}\\d]+)分之([{_NUMERAL}\\d]+(?:[.点][{_NUMERAL}\\d]+)?)")
_TENTHS = re.compile(f"([{''.join(_DIGIT)}\\d])成(?![为立员长熟功分])")
_FRACTION = re.compile(r"(?<![\d/])(\d+)/(\d+)(?![\d/])")
_WORDS: dict[str, tuple[Fraction | int, ...]] = {
    "半": (Fraction(1, 2), 30, 50),
    "双": (2,),
    "雙": (2,),
    "对": (2,),
    "對": (2,),
    "孪": (2,),
    "倍": (2,),
    "首": (1,),
    "单": (1,),
    "打": (12,),
    "刻": (15, Fraction(1, 4)),
    "廿": (20,),
    "卅": (30,),
    "旬": (10,),
}


def chinese_numbers(text: str) -> list[Number]:
    """All numbers of a text, in no order."""
    text = _FULL_HOUR.sub("", plain(text))
    found: list[Number] = []
    for pattern, read in ((_FRACTION, _fraction), (_PARTS, _share), (_TENTHS, _tenths), (_DIGITS, _digits)):
        more, text = take(pattern, text, read)
        found += more
    return [*found, *_numerals(text), *_words(text)]


def _fraction(found: re.Match[str]) -> Iterator[Number]:
    above, below = int(found[1]), int(found[2])
    yield number(found[0], above, below, *([Fraction(above, below)] if below else []), digits=True)


def _share(found: re.Match[str]) -> Iterator[Number]:
    below, above = _value(found[1]), _value(found[2])
    if below and above is not None:
        yield number(found[0], above / below, above, below)


def _tenths(found: re.Match[str]) -> Iterator[Number]:
    tenths = _value(found[1])
    if tenths is not None:
        yield number(found[0], tenths, tenths * 10, tenths / 10, firm=False)


def _digits(found: re.Match[str]) -> Iterator[Number]:
    value = Fraction(found["value"].replace(",", ""))
    for place in found["scale"] or "":
        value *= (_PLACE | _MYRIAD)[place]
    yield number(found[0].strip(), value, *([value / 100] if found["percent"] else []), digits=True)


def _numerals(text: str) -> Iterator[Number]:
    for found in _RUN.finditer(text):
        values = _readings(found[0])
        before, after = text[: found.start()][-1:], text[found.end() :][:1]
        # 星期三 and 第三 are numbers, but English may have no word for them in which it shows.
        measured = after != "" and after in _MEASURES and before not in ("期", "周", "第") and len(found[0]) == 1
        places = len(found[0]) > 1 and any(c in _DIGIT for c in found[0]) and any(c in _PLACES for c in found[0])
        # 万一 and 千万 are words, too.
        places = places and found[0][0] not in _MYRIAD
        yield number(found[0], *values, firm=(measured or places) and min(values) >= 2)


def _words(text: str) -> Iterator[Number]:
    for character in text:
        if character in _WORDS:
            yield number(character, *_WORDS[character], firm=False)


def _value(written: str) -> Fraction | None:
    written = written.replace("点", ".") if "." not in written and written[:1].isdigit() else written
    try:
        return Fraction(written)
    except ValueError:
        pass
    readings = _readings(written) if all(c in _NUMERAL or c == "点" for c in written) else []
    return Fraction(readings[0]) if readings else None


def _readings(run: str) -> list[Fraction]:
    """The value first; then what a colloquial or digit by digit reading would give."""
    whole, _, decimals = run.partition("点")
    if decimals:
        parts = [_readings(whole)[0], Fraction(_spelt(decimals))]
        fraction = Fraction(_spelt(decimals), 10 ** len(decimals))
        return [parts[0] + fraction, *parts]
    if not any(character in _PLACES for character in run):
        digits = [Fraction(_DIGIT[character]) for character in run]
        return [Fraction(_spelt(run)), *(digits if len(digits) > 1 else [])]
    value, last = _placed(run)
    # 一百二 is 120 and 两千五 is 2500: the last digit counts tenths of the place before it.
    short = [value - _DIGIT[run[-1]] + _DIGIT[run[-1]] * last // 10] if run[-1] in _DIGIT and last >= 100 else []
    if len(run) > 1 and run[-2] in ("零", "〇"):
        short = []
    return [Fraction(value), *map(Fraction, short)]


def _spelt(run: str) -> int:
    return int("".join(str(_DIGIT[character]) for character in run))


def _placed(run: str) -> tuple[int, int]:
    """The value by places, and the last place that was named."""
    total = section = digit = 0
    last = 1
    for character in run:
        if character in _DIGIT:
            digit = _DIGIT[character]
        elif character in _PLACE:
            last = _PLACE[character]
            # 十五 begins with its place.
            section += (digit or 1) * last
            digit = 0
        else:
            last = _MYRIAD[character]
            total = (total + section + digit or 1) * last
            section = digit = 0
    return total + section + digit, last
