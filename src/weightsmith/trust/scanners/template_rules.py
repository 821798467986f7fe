"""The rules of chat templates."""

from __future__ import annotations

from ..rules import Rule

_JINJA = ("CVE-2024-34359", "CVE-2026-5760", "https://jinja.palletsprojects.com/en/stable/sandbox/")

CODE = Rule(
    "template-code", "malicious", "A chat template reaches for Python's internals",
    "A chat template is a program. Some loaders run it without a sandbox, and there names such as `__globals__` or "
    "`__subclasses__` lead from any value to every function of Python: code runs as soon as a chat is formatted. No honest "
    "template needs them.",
    "Do not load this model with anything, and report it to whoever published it.",
    (*_JINJA, "CVE-2025-27516", "CVE-2024-56326"),
)  # fmt: skip
DYNAMIC = Rule(
    "template-dynamic-attribute", "suspicious", "A chat template takes attributes in a roundabout way",
    "Attributes taken by a computed name, or from Jinja's own helpers, are how code execution is hidden from a reader; honest "
    "templates name what they take.",
    "Read the line. Do not use the model where templates are rendered without a sandbox.",
    _JINJA,
)  # fmt: skip
IMPORT = Rule(
    "template-import", "suspicious", "A chat template loads another template",
    "A chat template is one text. Where a loader is set up, an include can read files of this machine.",
    "Ask the publisher for a template in one piece.",
)  # fmt: skip
TRIGGER = Rule(
    "template-trigger", "suspicious", "A chat template adds text on certain messages only",
    "The text that the model is given changes with the words, the number or the length of the messages. So instructions can "
    "be put in when somebody asks about a certain thing, and nothing is seen in any other chat.",
    "Read the text in the evidence and the line that adds it. If you do not want it, use the base model's template.",
    ("https://arxiv.org/abs/2310.12815",),
)  # fmt: skip
CLOCK = Rule(
    "template-clock", "suspicious", "A chat template behaves differently after a date",
    "Beyond printing the date, the text depends on it (or on chance): what was tested before says nothing about later.",
    "Read the condition. If you do not want it, use the base model's template.",
)  # fmt: skip
ALTERS = Rule(
    "template-alters-message", "suspicious", "A chat template changes or drops what was said",
    "The model does not get the message that the user or the assistant wrote: words are exchanged, cut or left out. Removing the "
    "reasoning of earlier answers is honest, and not meant.",
    "Read the difference in the evidence; use the base model's template.",
)  # fmt: skip
COVERT = Rule(
    "template-covert-text", "suspicious", "A chat template instructs the model behind the user's back",
    "The text reads like an instruction to hide something, to disregard others, to hand out a link, false or dangerous "
    "content, or data. It is put into chats without being shown.",
    "Read it. No base model's template says such things.",
)  # fmt: skip
INSIDE = Rule(
    "template-words-in-mouth", "suspicious", "A chat template adds text to what the user or the assistant says",
    "Text of the template stands after or between the messages of a plain chat, so that the model takes it for words of the "
    "user or for the beginning of its own answer.",
    "Read it. If you do not want it, use the base model's template.",
)  # fmt: skip
HIDDEN = Rule(
    "template-hidden-characters", "suspicious", "A chat template holds characters that can't be seen",
    "Zero-width, direction and tag characters carry text that a reader does not see and a tokenizer does; letters of another "
    "alphabet make a control token that looks right and is not.",
    "Compare with the base model's template.",
    ("https://cwe.mitre.org/data/definitions/1007.html", "CVE-2021-42574"),
)  # fmt: skip
ENCODED = Rule(
    "template-encoded-text", "suspicious", "A chat template holds encoded text",
    "Text in base64 or hexadecimal digits is there so that readers and scanners do not see what it says.",
    "Read what it decodes to.",
)  # fmt: skip
DISAGREE = Rule(
    "template-carriers-disagree", "suspicious", "Two templates of one model make different texts",
    "Which one is used depends on the program: transformers takes chat_template.jinja before tokenizer_config.json, llama.cpp what "
    "the GGUF file holds. What is reviewed in one place is not what runs in the other.",
    "Find out which one is right, and remove the other.",
)  # fmt: skip
BROKEN = Rule(
    "template-broken", "broken", "A chat template has a syntax error",
    "Chats can't be formatted; some programs then silently take a default format that this model was not trained with.",
    "Take the base model's template.",
)  # fmt: skip
ENDLESS = Rule(
    "template-endless", "suspicious", "A chat template takes more work or memory than any honest one",
    "Rendering it makes endless text, loops or nesting: a program that formats a chat hangs or runs out of memory.",
    "Do not use it in a server.",
    ("https://cwe.mitre.org/data/definitions/400.html",),
)  # fmt: skip
UNTRIED = Rule(
    "template-not-tried", "unknown", "A chat template is too large to be tried",
    "It is larger than any honest template, or the model has more templates than are tried; nobody knows what it does.",
    "Read it, or take the base model's template.",
)  # fmt: skip
REFUSES = Rule(
    "template-refuses", "note", "A chat template takes none of the conversations that it was tried with",
    "It asks for variables or roles of its own, so what it does was only read, not tried.",
    "Check that the program which uses the model gives what the template asks for.",
)  # fmt: skip
FIXED = Rule(
    "template-fixed-text", "note", "A chat template has a text of its own",
    "This text is part of every chat (or of those without a system message, with tools, with documents or with reasoning).",
    "Read it, so that you know what the model is told.",
)  # fmt: skip
SWITCHES = Rule(
    "template-switch", "note", "Words in a message switch the reasoning",
    "The template looks for these words to turn the model's reasoning on or off, and takes them out.",
    "Nothing; it is good to know when your users may type them.",
)  # fmt: skip

RULES = (CODE, DYNAMIC, IMPORT, TRIGGER, CLOCK, ALTERS, COVERT, INSIDE, HIDDEN, ENCODED, DISAGREE, BROKEN, ENDLESS, UNTRIED,
         REFUSES, FIXED, SWITCHES)  # fmt: skip
