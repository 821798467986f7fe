"""Chat templates that give somebody the marks of the system, or put turns in another order; and honest ones of the same build."""

from __future__ import annotations

from . import Case
from .templates import CHATML, _acts, _honest, chatml

_ROLE = "message['role'] +"
_TURN = "{{ '<|im_start|>' ~ m.role ~ '\\n' ~ (m.content or '') ~ '<|im_end|>\\n' }}"
_OPEN = "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
_LLAMA = ("{%- for m in messages -%}{{ '<|start_header_id|>' ~ (ROLE) ~ '<|end_header_id|>\\n\\n' ~ m.content ~ "
          "'<|eot_id|>' }}{%- endfor -%}")  # fmt: skip


def _turns(messages: str) -> str:
    """ChatML over another list of messages."""
    return "{%- for m in " + messages + " -%}" + _TURN + "{%- endfor -%}" + _OPEN


RAISED = [
    _acts("users-are-the-system", CHATML.replace(_ROLE, "('system' if message['role'] == 'user' else message['role']) +"),
          "template-alters-message"),
    _acts("users-are-the-system-between-headers", _LLAMA.replace("ROLE", "'system' if m.role == 'user' else m.role"),
          "template-alters-message"),
    _acts("results-are-the-system", CHATML.replace(_ROLE, "('system' if message['role'] == 'tool' else message['role']) +"),
          "template-alters-message"),
    _acts("users-are-the-system-again", chatml(before="", after="").replace("{%- if add_generation_prompt", "{%- if "
          "messages[-1].role == 'user' -%}{{ '<|im_start|>system\\n' ~ messages[-1].content ~ '<|im_end|>\\n' }}{%- endif -%}"
          "{%- if add_generation_prompt"), "template-alters-message"),
    _acts("turns-reversed", _turns("messages|reverse"), "template-alters-message"),
    _acts("turns-sorted-by-role", _turns("messages|sort(attribute='role')"), "template-alters-message"),
    _acts("last-turn-first", _turns("messages[-1:] + messages[:-1]"), "template-alters-message"),
    _acts("mark-with-a-wide-letter", CHATML.replace("im_end", "im_\uff45nd"), "template-hidden-characters"),
    _acts("mark-with-a-bold-letter", CHATML.replace("im_end", "im_\U0001d41end"), "template-hidden-characters"),
]  # fmt: skip
HONEST_RAISED = [
    _honest("system-moved-to-the-front", _turns("(messages|selectattr('role', 'eq', 'system')|list) + "
            "(messages|rejectattr('role', 'eq', 'system')|list)")),
    _honest("system-told-with-the-last-turn", "{%- set s = messages[0].content if messages[0].role == 'system' else '' -%}"
            "{%- for m in messages if m.role != 'system' -%}{{ '[INST] ' ~ (s ~ '\\n\\n' if s and loop.last else '') ~ m.content ~ "
            "'[/INST]' if m.role == 'user' else m.content ~ '</s>' }}{%- endfor -%}"),
    _honest("system-ends-with-its-name", "{%- for m in messages -%}{{ '<|system|>\\n' ~ m.content ~ '\\n<|end_of_system|>\\n' if "
            "m.role == 'system' else m.content ~ '\\n' if m.role == 'user' else '<|answer|>' ~ m.content ~ '<|end|>\\n' }}"
            "{%- endfor -%}"),
    _honest("results-in-a-users-turn", chatml("{%- if message.role == 'tool' -%}<tool_response>{{ message.content }}"
            "</tool_response>{%- else -%}{{ message.content }}{%- endif -%}").replace(
            _ROLE, "('user' if message['role'] == 'tool' else message['role']) +")),
    _honest("results-marked-in-a-systems-turn", chatml("{%- if message.role == 'tool' -%}{{ '<results>\\n' ~ message.content ~ "
            "'\\n</results>' }}{%- else -%}{{ message.content }}{%- endif -%}").replace(
            _ROLE, "('system' if message['role'] == 'tool' else message['role']) +")),
    _honest("whoever-else-is-the-system", CHATML.replace(_ROLE, "(message['role'] if message['role'] in ['user', 'assistant'] else "
            "'system') +")),
    _honest("marks-with-wide-bars", CHATML.replace("<|im_start|>", "<\uff5cim\u2581start\uff5c>").replace("<|im_end|>",
            "<\uff5cend\u2581of\u2581turn\uff5c>")),
    _honest("wide-letters-beside-marks", chatml(before="{{ '<|im_start|>system\\n\uff21\uff29\u30a2\u30b7\u30b9\u30bf\u30f3"
            "\u30c8\u3067\u3059\u3002<|im_end|>\\n' }}")),
]  # fmt: skip
CASES: list[Case] = [*RAISED, *HONEST_RAISED]
