"""What is asked and how it is answered, in both languages: plain data, no logic.

`{name}` is the exact CLDR short name, `{group}` the category, both in the language of the question.
Each task has several wordings, so that the model follows the question and not one string.
"""

Wordings = dict[str, tuple[str, ...]]

NAME: Wordings = {
    "en": (
        "What is this?",
        "What is in the picture?",
        "What does the picture show?",
        "What do you see?",
        "Name this.",
        "What is this called?",
        "What is it?",
        "Tell me what this is.",
        "What can you see in this image?",
        "What is this emoji?",
    ),
    "zh": (
        "这是什么？",
        "图中是什么？",
        "图里有什么？",
        "图片里是什么？",
        "你看到了什么？",
        "这个叫什么？",
        "它是什么？",
        "请说出它的名字。",
        "这张图片是什么？",
        "这是什么表情？",
    ),
}
NAME_IN_OTHER = {
    "en": ("What is this called in Chinese?", "Name this in Chinese.", "What is the Chinese name of this?"),
    "zh": ("这个用英文怎么说？", "它的英文名是什么？", "用英文说出它的名字。"),
}
CATEGORY: Wordings = {
    "en": (
        "What category does this belong to?",
        "Which category is this?",
        "What kind of thing is this?",
        "Name the category.",
        "What group does it belong to?",
        "Which group is it in?",
        "What is its category?",
        "What type of thing is in the picture?",
    ),
    "zh": (
        "这属于哪一类？",
        "它是哪一类？",
        "这是什么类别？",
        "它属于什么类别？",
        "请说出类别。",
        "图中的东西属于哪一类？",
        "这是哪一类东西？",
        "它的类别是什么？",
    ),
}
DESCRIBE = {
    "en": (
        ("Describe the picture.", "A picture of {name}."),
        ("Describe this image.", "A picture of {name}."),
        ("Give a short description.", "A picture of {name}."),
        ("Write a sentence about the picture.", "This picture shows {name}."),
        ("Describe what it is and its category.", "This is {name}. It belongs to {group}."),
        ("Tell me about this picture.", "This is {name}. It belongs to {group}."),
    ),
    "zh": (
        ("描述这张图片。", "图中是{name}。"),
        ("请描述一下图片。", "图中是{name}。"),
        ("用一句话描述图片。", "图中是{name}。"),
        ("简单说说这张图。", "这张图片展示的是{name}。"),
        ("说说它是什么、属于哪一类。", "这是{name}，属于{group}。"),
        ("介绍一下这张图片。", "这是{name}，属于{group}。"),
    ),
}
VERIFY = {
    "en": ("Is this {name}?", "Does the picture show {name}?", "Is it {name}?", "Do you see {name}?"),
    "zh": ("这是{name}吗？", "图中是{name}吗？", "图里有{name}吗？", "它是{name}吗？"),
}
VERIFY_CATEGORY = {
    "en": ("Does this belong to {group}?", "Is it in the category {group}?"),
    "zh": ("它属于{group}吗？", "它的类别是{group}吗？"),
}
YES = {"en": "Yes.", "zh": "是的。"}
NO = {"en": "No.", "zh": "不是。"}
KEYWORDS = {
    "en": ("Give three keywords.", "Which keywords fit the picture?", "List some keywords."),
    "zh": ("给出三个关键词。", "哪些关键词适合这张图？", "列出几个关键词。"),
}
KEYWORD_JOIN = {"en": ", ", "zh": "、"}

FOLLOW_NAME = {
    "en": ("What is its English name?", "And in English?", "Say it in English."),
    "zh": ("它的中文名是什么？", "用中文怎么说？", "中文叫什么？"),
}
FOLLOW_CATEGORY = {
    "en": ("What category is it?", "And its category?", "Which category does it belong to?"),
    "zh": ("属于哪一类？", "那它的类别呢？", "它属于哪一类？"),
}

WHICH_PICTURE = {
    "en": (
        ("What is in the first picture?", "What does the first image show?"),
        ("What is in the second picture?", "What does the second image show?"),
    ),
    "zh": (("第一张图里是什么？", "第一张图片是什么？"), ("第二张图里是什么？", "第二张图片是什么？")),
}
BOTH_PICTURES = {
    "en": (("What is in the two pictures?", "The first is {first}, the second is {second}."),),
    "zh": (("两张图里分别是什么？", "第一张是{first}，第二张是{second}。"),),
}
SAME_CATEGORY = {
    "en": ("Do the two pictures belong to the same category?",),
    "zh": ("两张图属于同一类吗？",),
}
NEXT_PICTURE = {
    "en": ("And this one?", "What is this?", "What about this picture?"),
    "zh": ("那这个呢？", "这是什么？", "这张图呢？"),
}

TRANSLATE = {
    "en": ('What is "{name}" in Chinese?', 'How do you say "{name}" in Chinese?', "Translate into Chinese: {name}"),
    "zh": ("“{name}”用英文怎么说？", "“{name}”的英文是什么？", "翻译成英文：{name}"),
}
WORD_CATEGORY = {
    "en": ('What category does "{name}" belong to?', 'Which category is "{name}"?'),
    "zh": ("“{name}”属于哪一类？", "“{name}”是什么类别？"),
}
NO_PICTURE = {
    "en": "I do not see a picture. Please send me one.",
    "zh": "我没有看到图片，请先发一张给我。",
}
CHAT = {
    "en": (
        (("Hello!", "Hi!", "Hello", "Hi there", "Good morning!"), "Hello! Send me a picture and ask me about it."),
        (
            ("Who are you?", "What is your name?", "What are you?", "Introduce yourself."),
            "I am Ziya-Visual tiny, a small model that names pictures in English and Chinese.",
        ),
        (
            ("What can you do?", "How can you help me?", "What are you good at?", "Help"),
            "I can name the thing in a picture, say its category, and answer in English or Chinese.",
        ),
        (("Thank you!", "Thanks", "Thanks a lot!"), "You are welcome!"),
        (("Goodbye!", "Bye", "See you!"), "Goodbye!"),
        (("How are you?",), "I am fine, thank you. Do you have a picture for me?"),
        (("Do you speak Chinese?", "Can you speak Chinese?"), "Yes, I speak English and Chinese."),
    ),
    "zh": (
        (("你好！", "你好", "您好！", "嗨", "早上好！"), "你好！发一张图片给我，问我里面是什么吧。"),
        (
            ("你是谁？", "你叫什么名字？", "介绍一下你自己。", "你是什么模型？"),
            "我是 Ziya-Visual tiny，一个能用中文和英文认图的小模型。",
        ),
        (
            ("你能做什么？", "你会什么？", "你能帮我做什么？", "帮助"),
            "我能说出图片里是什么、属于哪一类，用中文或英文回答。",
        ),
        (("谢谢！", "谢谢你", "多谢"), "不客气！"),
        (("再见！", "拜拜", "再见"), "再见！"),
        (("你好吗？",), "我很好，谢谢。你有图片要给我看吗？"),
        (("你会说英文吗？", "你会英语吗？"), "会，我会说中文和英文。"),
    ),
}
