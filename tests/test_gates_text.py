"""The gates that look at one text or pair: language, length, copies, refusals. True and false cases by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gate_rows import generated, translated, verdict
from training.gates.copied import Copied
from training.gates.language import Language, is_traditional
from training.gates.lengths import LengthRatio, length_ratio
from training.gates.refusals import Refusals
from training.gates.row import Line, Row

WELL = "well"
HAN = st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FA5), min_size=1, max_size=30)


@pytest.mark.parametrize(
    ("chinese", "expected"),
    [
        ("一只猫坐在桌子上。", WELL),
        ("一只名叫 Max 的 Golden Retriever 坐在草地上，旁边是一辆 BMW X5。", WELL),
        ("牌子上写着“NO PARKING ANY TIME ON THIS STREET”。", WELL),
        ("1999年，共3只。", WELL),
        ("42", WELL),
        ("👍🏽🎉", WELL),
        ("猫", WELL),
        ("网址是 https://example.org/the/cat-is-on-the-mat 。", WELL),
        ("运行 `print(the_cat)` 即可", WELL),
        ("NASA", "doubt: only names where Chinese is due"),
        ("iPhone 15 Pro", "doubt: only names where Chinese is due"),
        ("一隻貓坐在桌子上，後面有個書櫃。", "doubt: traditional characters"),
        ("A cat sits on a table.", "reject: English where Chinese is due"),
        ("cat", "reject: English where Chinese is due"),
        ("这张图片 shows a cat sitting on a wooden table。", "reject: English words left in Chinese"),
        ("一只可爱的小猫正安静地坐在 the table of the kitchen 上", "reject: English words left in Chinese"),
        ("これはテーブルの上の猫です。", "reject: Japanese where Chinese is due"),
        ("고양이가 탁자 위에 있다", "reject: Korean where Chinese is due"),
        ("Кошка сидит на столе", "reject: another script where Chinese is due"),
    ],
)
def test_chinese_is_told_by_its_letters(chinese: str, expected: str) -> None:
    assert verdict(Language().check, translated("A cat.", chinese)) == expected


@pytest.mark.parametrize(
    ("english", "expected"),
    [
        ("A cat sits on a table.", WELL),
        ("Café au lait", WELL),
        ("Yes", WELL),
        ("42", WELL),
        ("The sign reads “停车”.", WELL),
        ("A sign with 停车 on it.", "doubt: Chinese characters in English"),
        ("桌子上有一只猫。", "reject: Chinese where English is due"),
        (
            "Ein Hund sitzt neben einer Katze auf dem Tisch in der Küche.",
            "reject: another language where English is due",
        ),
        (
            "Un chien est assis sur la table à côté de deux chats noirs.",
            "reject: another language where English is due",
        ),
        ("Кошка сидит на столе", "reject: another script where English is due"),
    ],
)
def test_english_is_told_by_its_letters_and_long_texts_by_their_words(english: str, expected: str) -> None:
    assert verdict(Language().check, translated("一只猫。", english, into="en")) == expected


def test_traditional_characters_can_be_refused() -> None:
    row = translated("A cat sits on a table.", "一隻貓坐在桌子上，後面有個書櫃。")
    assert verdict(Language("reject").check, row) == "reject: traditional characters"
    assert not is_traditional("一只猫坐在桌子上")


@given(HAN)
def test_no_han_text_is_taken_for_another_language(text: str) -> None:
    assert verdict(Language().check, translated("A cat.", text)) in (WELL, "doubt: traditional characters")


@pytest.mark.parametrize(
    ("english", "chinese", "expected"),
    [
        ("bird", "鸟", WELL),
        ("face with tears of joy", "笑哭了", WELL),
        ("A man riding a wave on top of a surfboard.", "一名男子站在冲浪板上乘风破浪。", WELL),
        ("ping pong", "乒乓球", WELL),
        (
            "A train travelling down tracks next to a long brick building in the city.",
            "火车。",
            "reject: Chinese too short",
        ),
        ("A cat.", "这是一只坐在木桌上、看着窗外飞过的小鸟的橘色小猫。", "reject: Chinese too long"),
        ("A cat.", "猫" * 40, "reject: Chinese too long"),
    ],
)
def test_lengths_are_compared_in_characters_and_words(english: str, chinese: str, expected: str) -> None:
    assert verdict(LengthRatio().check, translated(english, chinese)) == expected


@given(st.lists(st.sampled_from(["cat", "NASA", "3.5", "don't"]), max_size=20), HAN)
def test_the_ratio_of_lengths_grows_with_the_chinese_and_falls_with_the_english(words: list[str], han: str) -> None:
    ratio = length_ratio(" ".join(words), han)
    assert length_ratio(" ".join(words), han + "猫") > ratio > length_ratio(" ".join([*words, "cat"]), han)


@pytest.mark.parametrize(
    ("source", "made", "expected"),
    [
        ("A cat sits on a table.", "一只猫坐在桌子上。", WELL),
        ("NASA", "NASA", WELL),
        ("3.14", "3.14", WELL),
        ("😀", "😀", WELL),
        ("Stop", "Stop", WELL),
        ("A poster of Gone With The Wind Returns", "《Gone With The Wind Returns》的海报", WELL),
        ("He said “to be or not to be”.", "他说：“to be or not to be”。", WELL),
        ("a cat on a table", "A cat on a table.", "reject: untranslated"),
        ("cat", "cat", "reject: untranslated"),
        ("A cat sits on a table.", "A cat sits on a table. 一只猫坐在桌子上。", "reject: source repeated"),
        ("A cat sits on the red table today.", "一只猫 sits on the red 桌子", "reject: partly untranslated"),
        ("A cat.", "翻译：一只猫。", "reject: preamble"),
        ("A cat.", "以下是中文翻译：一只猫。", "reject: preamble"),
        ("A cat.", '```json\n{"zh": "一只猫。"}\n```', "reject: preamble"),
        ("Translation is hard.", "翻译很难。", WELL),
        ("The following is a list of cats.", "以下是一份猫的清单。", WELL),
        ("A cat.", "一只{name}。", "reject: template left"),
        ("A cat.", "<answer>一只猫</answer>", "reject: template left"),
        ("f(x) = {x: x > 0}", "f(x) = {x: x > 0} 的集合", WELL),
    ],
)
def test_what_a_translator_leaves_behind(source: str, made: str, expected: str) -> None:
    assert verdict(Copied().check, translated(source, made)) == expected


def test_what_a_translator_into_english_leaves_behind() -> None:
    check = Copied().check
    assert (
        verdict(check, translated("一只猫坐在桌子上。", "Sure! Here is the translation: A cat.", into="en"))
        == "reject: preamble"
    )
    assert verdict(check, translated("一只猫。", "一只猫。", into="en")) == "reject: untranslated"
    assert (
        verdict(check, translated("一只猫坐在桌子上。", "A cat. 一只猫坐在桌子上。", into="en"))
        == "reject: source repeated"
    )
    assert verdict(check, translated("一只猫坐在桌子上。", "Here is the cat on the table.", into="en")) == WELL


def test_an_answer_must_not_tell_of_the_description_that_stood_for_the_picture() -> None:
    check = Copied().check
    told = generated("What is it?|Based on the captions, it is a cat.", "这是什么？|根据描述信息，这是一只猫。")
    assert verdict(check, told) == "reject: tells of its description"
    assert (
        verdict(check, generated("What is it?|It is a cat.", "这是什么？|根据标题，这是猫。"))
        == "reject: tells of its description"
    )
    assert (
        verdict(check, generated("What does it read?|The sign describes a way.", "写了什么？|牌子说明了一条路。"))
        == WELL
    )
    # Of a translation, the source may speak of captions.
    assert verdict(check, translated("Based on the caption it is.", "根据标题是这样。")) == WELL


def test_an_answer_must_not_be_its_question_or_the_description() -> None:
    check = Copied().check
    assert verdict(check, generated("A cat?|A cat!", "是猫吗？|是的。")) == "reject: answer repeats its question"
    context = "A brown cat sits on a red table near the window."
    row = generated(f"Describe it.|{context}", "描述它。|一只猫坐在桌上。", context=context)
    assert verdict(check, row) == "doubt: answer is the description"


def test_the_prompt_must_not_come_back() -> None:
    prompt = (
        "You translate texts about pictures from English into Chinese. 每一句都要翻译成通顺自然的简体中文并保留数字"
    )
    check = Copied((prompt,)).check
    assert (
        verdict(check, translated("A cat.", "A cat, translate texts about pictures from English into Chinese."))
        == "reject: prompt repeated"
    )
    assert verdict(check, translated("A cat.", "都要翻译成通顺自然的简体中文并保留。")) == "reject: prompt repeated"
    assert verdict(check, translated("Texts about pictures.", "关于图片的文字，翻译成简体中文。")) == WELL


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        ("抱歉，我无法翻译这段内容。", "reject: refusal"),
        ("对不起，我不能提供该信息。", "reject: refusal"),
        ("作为一个人工智能语言模型，我没有个人观点。", "reject: speaks of itself"),
        ("作为AI助手，我会尽力。", "reject: speaks of itself"),
        ("我无法看到图片，请描述一下。", "reject: says that it sees no picture"),
        ("抱歉，图中没有猫。", WELL),
        ("对不起，我今天不能来了。", WELL),
        ("他抱歉地笑了笑，无法移动。", WELL),
        ("这个机器人正在画画，屏幕上写着 AI。", WELL),
        ("我看不清他的脸，因为他戴着帽子。", WELL),
    ],
)
def test_refusals_in_chinese(made: str, expected: str) -> None:
    row = translated("Who is it?|It is a man in a hat.", f"这是谁？|{made}", task="dialogue", image=lambda: b"")
    assert verdict(Refusals().check, row) == expected


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        ("I'm sorry, but I can't assist with that.", "reject: refusal"),
        ("Sorry, I cannot translate this text.", "reject: refusal"),
        ("I am unable to provide a translation.", "reject: refusal"),
        ("As an AI language model, I have no opinion.", "reject: speaks of itself"),
        ("I'm just an AI assistant.", "reject: speaks of itself"),
        ("I am unable to view the image.", "reject: says that it sees no picture"),
        ("I'm sorry, there is no cat in the picture.", WELL),
        ("Sorry, I can't come today, but I can help tomorrow.", WELL),
        ("I cannot see his face because of the hat.", WELL),
        ("The screen shows the word AI.", WELL),
        ("He was an AI researcher.", WELL),
    ],
)
def test_refusals_in_english(made: str, expected: str) -> None:
    row = translated("这是谁？|一个戴帽子的男人。", f"Who is it?|{made}", task="dialogue", into="en", image=lambda: b"")
    assert verdict(Refusals().check, row) == expected


def test_a_user_may_speak_to_the_model_about_itself() -> None:
    asked, answer = "As an AI model, what do you see?", "A cat."
    check = Refusals().check
    assert (
        verdict(check, translated(f"{asked}|{answer}", "作为一个AI模型，你看到什么？|一只猫。", task="dialogue"))
        == WELL
    )
    # But a translator that refuses a question is found on the question's line.
    refused = translated(f"How do I open it?|{answer}", "抱歉，我无法回答这个问题。|一只猫。", task="dialogue")
    assert verdict(check, refused) == "reject: refusal"


def test_a_refusal_of_the_source_is_told_apart() -> None:
    row = translated("Who?|I'm sorry, but I can't assist with that.", "谁？|抱歉，我无法协助。", task="dialogue")
    assert verdict(Refusals().check, row) == "reject: refusal, in the source"


def test_without_a_picture_to_see_none_is_a_good_answer() -> None:
    row = translated("What is it?|I do not see a picture.", "这是什么？|我没有看到图片。", task="dialogue")
    assert verdict(Refusals().check, row) == "doubt: says that it sees no picture"


def test_lines_of_both_languages_are_looked_at() -> None:
    made = {
        "en": (Line("question", "What?"), Line("answer", "A cat.")),
        "zh": (Line("question", "什么？"), Line("answer", "cat")),
    }
    row = Row("row", "vqa", "en", (), made, translated=False)
    assert verdict(Language().check, row) == "reject: English where Chinese is due"
