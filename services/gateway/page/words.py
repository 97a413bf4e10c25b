"""Every sentence of the page, in English and in Chinese.

What is on the page from the start is translated by gradio in the browser, by its language; what the page's process
says later is in the language that the browser asked for (`Accept-Language`).
"""

from __future__ import annotations

from string import Formatter

LANGUAGES = ("en", "zh")

LABELS: dict[str, tuple[str, str]] = {
    "heading": ("Talk about pictures", "看图对话"),
    "chat": ("Conversation", "对话"),
    "ask": ("Ask; drop, paste or pick pictures", "输入问题，拖入或粘贴图片"),
    "welcome": ("Show a picture and ask about it, in English or Chinese.", "给一张图片，用中文或英文提问。"),
    "parameters": ("Parameters", "参数"),
    "key": ("API key", "API 密钥"),
    "key_info": (
        "Kept by this browser tab alone, until it is closed or loaded anew.",
        "只保存在当前标签页中，关闭或刷新后即消失。",
    ),
    "model": ("Model", "模型"),
    "temperature": ("Temperature", "温度（temperature）"),
    "temperature_info": ("0 always takes the likeliest word.", "0 表示总是取概率最大的词。"),
    "top_p": ("Top-p", "核采样（top-p）"),
    "top_p_info": ("Words outside this share of likelihood are left out.", "只在累计概率不超过此值的词中选取。"),
    "max_tokens": ("Longest answer, in tokens", "回答的最大长度（token）"),
    "seed": ("Seed", "随机种子"),
    "seed_info": ("The same number gives the same answer; -1 is by chance.", "数字相同则回答相同；-1 表示随机。"),
}

SAID: dict[str, tuple[str, str]] = {
    "working": ("Working … {seconds:.0f} s", "处理中…… {seconds:.0f} 秒"),
    "stopped": ("Stopped.", "已停止。"),
    "report": (
        "First text after {first}, whole answer {total} · {stages} · {prompt} tokens read ({image} of pictures, "
        "{cached} remembered), {written} written{speed}",
        "首字 {first}，全部 {total} · {stages} · 读入 {prompt} 个 token（图片 {image}，已缓存 {cached}），"
        "生成 {written} 个{speed}",
    ),
    "speed": (", {rate:.0f} a second", "，每秒 {rate:.0f} 个"),
    "cut": ("Cut at the longest answer.", "已达到最大长度，回答被截断。"),
    "admission": ("let in {time}", "接入 {time}"),
    "vision": ("vision {time}", "视觉编码 {time}"),
    "qformer": ("Q-Former {time}", "Q-Former {time}"),
    "visual_wait": ("waiting for visual tokens {time}", "等待视觉 token {time}"),
    "prefill": ("prefill {time}", "预填充 {time}"),
    "decode": ("decode {time}", "解码 {time}"),
    "no_answer": ("⚠️ No answer", "⚠️ 没有回答"),
    "half_answer": ("⚠️ Not the whole answer", "⚠️ 回答不完整"),
    "empty": ("Type a question or add a picture.", "请输入问题或添加图片。"),
    "not_image": (
        "{name} is not an image that can be read: PNG, JPEG, WebP, GIF and BMP are.",
        "{name} 不是可读取的图片；支持 PNG、JPEG、WebP、GIF、BMP。",
    ),
    "lost_image": (
        "A picture of this conversation is no longer kept here. Show it again.",
        "此对话中的图片已被清理，请重新添加。",
    ),
    "refused": ("The request was refused: {detail}", "请求被拒绝：{detail}"),
    "bad_image": ("The picture was refused: {detail}", "图片被拒绝：{detail}"),
    "too_long": (
        "The conversation is longer than the model can read. Clear it, or ask with fewer pictures.",
        "对话超出模型可读的长度。请清空对话，或减少图片。",
    ),
    "no_key": ("This server asks for an API key. Enter it below.", "此服务需要 API 密钥，请在下方填写。"),
    "wrong_key": ("The server does not know this API key.", "服务不认识这个 API 密钥。"),
    "forbidden": ("This key may not do that: {detail}", "此密钥无权限：{detail}"),
    "too_large": ("The pictures are too large together.", "图片总大小超出限制。"),
    "own_limit": (
        "Your key has used up its limit. Ask again in {wait} s.",
        "您的密钥已达到用量上限，请在 {wait} 秒后再试。",
    ),
    "full": ("The server is full. Ask again in {wait} s.", "服务繁忙，请在 {wait} 秒后再试。"),
    "down": (
        "A part of the server is away ({detail}). It may be starting again; press retry in a moment.",
        "服务的一部分无法访问（{detail}），可能正在重启，请稍后重试。",
    ),
    "late": ("The answer took too long and was given up.", "回答超时，已放弃。"),
    "broken": ("The answer broke off: {detail}", "回答中断：{detail}"),
    "no_gateway": (
        "The server does not answer. It may be stopping or starting again.",
        "服务没有响应，可能正在停止或重启。",
    ),
    "page_defect": ("The page has failed; its log has the reason.", "页面出错，原因见日志。"),
    "defect": (
        "The server has failed. Its log has the reason under request {request}.",
        "服务出错，原因见日志中的请求 {request}。",
    ),
}


def translations(language: str) -> dict[str, str]:
    """The labels in one of LANGUAGES."""
    place = LANGUAGES.index(language)
    return {name: texts[place] for name, texts in LABELS.items()}


def say(language: str, name: str, /, **values: object) -> str:
    """A sentence of SAID with its values."""
    return SAID[name][LANGUAGES.index(language)].format(**values)


def fields_of(text: str) -> set[str]:
    """The names that a sentence wants."""
    return {field for _, field, _, _ in Formatter().parse(text) if field}


def language_of(accepted: str) -> str:
    """The one of LANGUAGES that comes first in an `Accept-Language` header, by its weights; English else."""
    weighed: list[tuple[float, int, str]] = []
    for place, part in enumerate(accepted.split(",")):
        tag, _, weight = part.strip().partition(";q=")
        language = tag.lower().split("-")[0]
        if language in LANGUAGES:
            weighed.append((-_number(weight), place, language))
    return min(weighed)[2] if weighed else "en"


def _number(text: str) -> float:
    try:
        return float(text or 1)
    except ValueError:
        return 0.0
