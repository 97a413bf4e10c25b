"""Are names, addresses, codes and quotations of a text in its translation too?

URLs, e-mail addresses and codes of four characters or more that mix letters and digits (`AF447`, not `3D`) have one
spelling in both languages and must be kept. All else here is only doubted, for a good translation may have another
word for it:

- names are runs of capitalised words inside a sentence, and words all in capitals. In Chinese a name stays in Latin
  letters, or is *transcribed*: a run of at least two of the characters that transcription uses (`TRANSCRIPTION`, a
  superset of the usual table for foreign names). It may also be a word of its own (Germany, 德国): such a run is not
  found, and the row is counted.
- a quotation must be there in the same words, or something else must be quoted.
- Latin words in the Chinese that the English has not were added.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field

from training.gates.gate import Doubt, Finding, Reject, worst
from training.gates.row import Pair, Row
from training.gates.scripts import LATIN, quotations, unquoted

TRANSCRIPTION = frozenset(
    "阿埃艾爱安昂奥巴白班邦包保堡鲍北贝本比彼毕宾波勃伯博布查茨达大戴丹当道德得登邓狄迪蒂丁东杜顿多厄恩尔法凡范方菲费芬丰冯弗佛福夫"
    "盖冈高戈格葛根贡古瓜圭果哈海汉豪赫黑亨洪侯胡华怀惠霍基吉季加贾简江杰捷金津京久居卡凯坎康考柯科可克肯孔库夸奎昆拉莱赖兰朗劳勒雷"
    "蕾黎里理丽莉力利立连列林琳灵龙卢鲁露伦罗洛吕略马玛迈麦曼芒毛梅门蒙孟米密敏明摩莫姆默穆慕内娜纳乃奈南瑙尼妮涅宁纽农努诺女欧帕派"
    "潘庞佩彭皮匹平珀坡泼普奇齐契恰钱乔切琴青丘曲让热日荣茹瑞若萨塞赛桑瑟森沙莎山珊尚绍舍申生圣施什士史舒朔丝司思斯松苏索所塔泰坦唐"
    "陶特滕提天廷图土托脱瓦娃万旺威韦维魏文翁沃乌伍武西希锡夏香肖谢辛欣兴雄休许逊雅亚扬耶叶伊因英尤于约泽扎詹珍芝朱兹佐"
)
_ADDRESS = re.compile(r"https?://[^\s<>\"'，。；、）]+|www\.[\w.-]+\w|[\w.+-]+@[\w-]+\.[\w.-]*\w", re.ASCII)
_CODE = re.compile(r"\b(?=\w*[A-Za-z])(?=\w*\d)[A-Za-z0-9]+(?:[-_][A-Za-z0-9]+)*\b", re.ASCII)
_WORD = f"[A-Z\u00c0-\u00de][{LATIN}'’]+"
_NAME = re.compile(
    rf"(?<![.!?:…\"“(\n] )(?<!^)(?<![{LATIN}-])(?:{_WORD})(?:[ -](?:(?:of|the|de|la|van|von) )?{_WORD})*"
)
_CAPITALS = re.compile(r"\b[A-Z]{2,}\b")
_LATIN_WORD = re.compile(f"[{LATIN}][{LATIN}'’]{{2,}}")
# Written with a capital in English, and translated by a word like any other.
_CALENDAR = re.compile(
    r"^(?:(?:mon|tues|wednes|thurs|fri|satur|sun)days?|january|february|march|april|may|june|july|august|september"
    r"|october|november|december|i|i'm|i’m|i'll|i've|mr|mrs|ms|dr|english|chinese|christmas|god|earth|tv|ok|usa|uk|us)$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class NamesKept:
    """Looks at every pair of lines on its own."""

    name: str = field(default="names", init=False)

    def check(self, row: Row) -> Finding | None:
        return worst(map(self._pair, row.pairs))

    def _pair(self, pair: Pair) -> Finding | None:
        english, chinese = (unicodedata.normalize("NFKC", text) for text in (pair.en, pair.zh))
        ways = {"en": [(english, chinese)], "zh": [(chinese, english)]}
        detail = f"{pair.en} / {pair.zh}"
        for source, target in ways.get(pair.source or "", [(english, chinese), (chinese, english)]):
            folded = target.casefold()
            for kind, lost in (("address", _addresses(source)), ("code", _codes(source))):
                if gone := [one for one in lost if one.casefold() not in folded]:
                    return Reject(self.name, f"{kind} is missing", f"{gone[0]}: {detail}")
        return self._doubt(english, chinese, pair.source, detail)

    def _doubt(self, english: str, chinese: str, source: str | None, detail: str) -> Finding | None:
        if source == "zh":
            lost = [word for word in _LATIN_WORD.findall(chinese) if word.casefold() not in english.casefold()]
            return Doubt(self.name, "a name is missing", f"{lost[0]}: {detail}") if lost else None
        folded = chinese.casefold()
        room = _transcribed(chinese)
        for name in names(unquoted(english)):
            if name.casefold() not in folded and not any(word.casefold() in folded for word in re.split("[ -]", name)):
                if not room:
                    return Doubt(self.name, "a name is missing", f"{name}: {detail}")
                room -= 1
        if quotations(english) and not _quotes_kept(english, chinese):
            return Doubt(self.name, "a quotation is missing", detail)
        added = [
            word
            for word in _LATIN_WORD.findall(_ADDRESS.sub(" ", chinese))
            if word.casefold() not in english.casefold()
        ]
        return Doubt(self.name, "Latin words were added", f"{added[0]}: {detail}") if added else None


def names(text: str) -> list[str]:
    """Capitalised runs inside sentences and words all in capitals, once each."""
    text = " ".join(_ADDRESS.sub(" ", text).split())
    if text.upper() == text or text.istitle():
        # Headings and shouting do not tell names by capitals.
        return []
    found = dict.fromkeys([*_NAME.findall(text), *_CAPITALS.findall(text)])
    return [name for name in found if not _CALENDAR.match(name)]


def _addresses(text: str) -> list[str]:
    return [one.rstrip(".,;:!?)") for one in _ADDRESS.findall(text)]


def _codes(text: str) -> list[str]:
    """Mixed codes but ordinals, amounts with a unit (10km, 1990s, 5pm) and what is short enough to be a word."""
    text = _ADDRESS.sub(" ", text)
    return [
        one
        for one in _CODE.findall(text)
        if len(one) > 3 and not re.fullmatch(r"\d+[A-Za-z]{1,3}|\d+-[a-z]+(?:-[a-z]+)*", one)
    ]


def _transcribed(chinese: str) -> int:
    """How many runs of two or more characters of transcription there are."""
    runs = "".join(character if character in TRANSCRIPTION else " " for character in chinese).split()
    return sum(len(run) > 1 for run in runs)


def _quotes_kept(english: str, chinese: str) -> bool:
    folded = chinese.casefold()
    return len(quotations(chinese)) >= len(quotations(english)) or all(
        q.casefold() in folded for q in quotations(english)
    )
