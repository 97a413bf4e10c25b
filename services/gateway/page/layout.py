"""The page as gradio builds it: heading, conversation, input, a line of times, parameters."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import gradio as gr
import httpx

from services.gateway.page import answer, turn
from services.gateway.page.facts import PageFacts
from services.gateway.page.history import Images
from services.gateway.page.turn import Question
from services.gateway.page.visitors import Visitors
from services.gateway.page.words import LANGUAGES, language_of, say, translations

# Answers that one page process carries at once, and visitors that wait for it.
AT_ONCE, WAITING = 32, 64
NO_SEED, LARGEST_SEED = -1, 2**31 - 1
_QUESTIONS = ("What is this?", "这是什么？", "这属于哪一类？")


def theme() -> gr.themes.Base:
    """The default one with fonts of the visitor's own machine, Chinese ones among them."""
    fonts = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "PingFang SC", "Microsoft YaHei")
    chinese = ("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei", "sans-serif")
    return gr.themes.Default(
        primary_hue="indigo", font=[*fonts, *chinese], font_mono=["ui-monospace", "Consolas", "monospace"]
    )


def words() -> gr.I18n:
    """The labels, in both languages, under every tag by which browsers name Chinese."""
    labels = {language: translations(language) for language in LANGUAGES}
    return gr.I18n(**labels, **dict.fromkeys(("zh-CN", "zh-TW", "zh-HK", "zh-SG"), labels["zh"]))


def build(facts: PageFacts, client: httpx.AsyncClient, i18n: gr.I18n) -> gr.Blocks:
    """The page. `client` asks the gateway."""
    images, visitors = Images(facts.files, facts.max_image_bytes), Visitors()

    async def chat(
        message: dict[str, Any],
        history: list[dict[str, Any]],
        request: gr.Request,  # by its type gradio knows where to put it, after what ChatInterface gives
        *chosen: Any,
    ) -> AsyncGenerator[tuple[Any, str], None]:
        key, model, temperature, top_p, max_tokens, seed = chosen
        question = Question(
            text=message.get("text") or "",
            # Where a question is asked again gradio gives what it has made of the path.
            files=[file["path"] if isinstance(file, dict) else file for file in message.get("files") or []],
            history=history,
            key=(key or "").strip(),
            language=language_of(request.headers.get("accept-language", "")),
            model=model or facts.model,
            temperature=temperature,
            top_p=top_p,
            max_tokens=max_tokens,
            seed=None if seed is None or seed < 0 else seed,
        )
        with visitors.turn(request.session_hash or "") as left:
            async with aclosing(turn.ask(client, question, images, left)) as views:
                async for view in views:
                    yield _shown(view, question.language), view.line

    async def leave(request: gr.Request) -> None:
        visitors.leave(request.session_hash or "")

    async def list_models(key: str) -> Any:
        key = (key or "").strip()
        names = [] if facts.keys_needed and not key else await answer.models(client, key)
        return gr.update(choices=names or [facts.model], visible=len(names) > 1)

    async def placeholder(request: gr.Request) -> Any:
        return gr.update(placeholder=translations(language_of(request.headers.get("accept-language", "")))["ask"])

    with gr.Blocks(
        title=facts.model,
        analytics_enabled=False,
        fill_height=True,
        delete_cache=(max(1, facts.keep_seconds // 12), facts.keep_seconds),
    ) as page:
        gr.Markdown(i18n("heading"), elem_id="heading", container=False)
        chosen = _parameters(facts, i18n)
        textbox = _textbox(i18n)
        times = gr.Markdown(elem_id="times", container=False, render=False)
        gr.ChatInterface(
            chat,
            multimodal=True,
            editable=True,
            chatbot=_chatbot(i18n),
            textbox=textbox,
            additional_inputs=chosen,
            additional_inputs_accordion=gr.Accordion(i18n("parameters"), open=facts.keys_needed, render=False),
            additional_outputs=[times],
            examples=[[example] for example in examples(facts)] or None,
            concurrency_limit=AT_ONCE,
            api_visibility="private",
            show_progress="hidden",
            analytics_enabled=False,
            cache_examples=False,
        )
        times.render()
        key, model = chosen[:2]
        page.unload(leave)
        # ChatInterface's own stop names a question by its number; a quick visitor stops it before the browser has that.
        textbox.stop(leave, queue=False, api_visibility="private", show_progress="hidden")
        # ChatInterface takes the placeholder away with every question, and never gives it back.
        times.change(placeholder, None, textbox, queue=False, api_visibility="private", show_progress="hidden")
        gr.on([page.load, key.change], list_models, key, model, api_visibility="private", show_progress="hidden")
    page.queue(max_size=WAITING, default_concurrency_limit=AT_ONCE, api_open=False)
    return page


def examples(facts: PageFacts) -> list[dict[str, Any]]:
    """Some of the checkpoint's pictures, asked about in either language."""
    if not facts.examples:
        return []
    folder = Path(facts.examples)
    entries = json.loads((folder / "examples.json").read_text("utf-8"))
    files = [str(folder / entry["file"]) for entry in entries if entry.get("seen")]
    return [{"text": question, "files": [file]} for question, file in zip(_QUESTIONS, files, strict=False)]


def _shown(view: turn.View, language: str) -> Any:
    """A view as messages of gradio's: a failure is one with a title, by which history.py knows it again."""
    said = [gr.ChatMessage(role="assistant", content=view.text)] if view.text else []
    if view.failure:
        title = say(language, "no_answer" if not view.text else "half_answer")
        said.append(gr.ChatMessage(role="assistant", content=view.failure, metadata={"title": title}))
    return said


def _chatbot(i18n: gr.I18n) -> gr.Chatbot:
    return gr.Chatbot(
        label=i18n("chat"),
        show_label=False,
        placeholder=i18n("welcome"),
        elem_id="chat",
        buttons=["copy", "copy_all"],  # sharing would send the conversation to another server
        scale=1,
        render=False,
    )


def _textbox(i18n: gr.I18n) -> gr.MultimodalTextbox:
    return gr.MultimodalTextbox(
        placeholder=i18n("ask"),
        show_label=False,
        file_types=["image"],
        file_count="multiple",
        sources=["upload"],
        elem_id="ask",
        stop_btn=True,
        autofocus=True,
        max_lines=8,
        render=False,
    )


def _parameters(facts: PageFacts, i18n: gr.I18n) -> list[Any]:
    """Key, model, temperature, top-p, tokens, seed; nothing that the API has not."""
    return [
        gr.Textbox(label=i18n("key"), info=i18n("key_info"), type="password", visible=facts.keys_needed, render=False),
        gr.Dropdown([facts.model], value=facts.model, label=i18n("model"), visible=False, render=False),
        gr.Slider(
            0, 2, facts.temperature, step=0.05, label=i18n("temperature"), info=i18n("temperature_info"), render=False
        ),
        gr.Slider(0.05, 1, facts.top_p, step=0.05, label=i18n("top_p"), info=i18n("top_p_info"), render=False),
        gr.Slider(1, facts.context, facts.max_tokens, step=1, label=i18n("max_tokens"), render=False),
        gr.Number(
            label=i18n("seed"),
            info=i18n("seed_info"),
            value=NO_SEED,
            precision=0,
            minimum=NO_SEED,
            maximum=LARGEST_SEED,
            render=False,
        ),
    ]
