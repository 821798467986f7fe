"""Claims in sentences. Precision first: a sentence that hedges, generalises or speaks of other models claims nothing here.

A number belongs to a figure only where nothing but connecting words stands between the two.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator
from typing import Any

from ..claimed import Claim, Relation, Subject
from .figures import Metric, Number, context_at, metric_of, number_at, size_at
from .page import Page, Sentence
from .parts import parts_of
from .tables import Names, claim_of, fact

LONGEST = 600  # characters of a sentence; a longer one is no plain statement

_HEDGE = re.compile(
    r"\b(?:should|would|could|might|can|expect\w*|typical\w*|usual\w*|general\w*|goals?|targets?|targeted|aims?|aimed|"
    r"thresholds?|considered|ideally|for example|e\.g|instance|another|other models?|papers?|et al|reports?|if|when|"
    r"most|many|similar|like|versus other|leaderboard|planned|will|try|tried|hope\w*|benchmark of)\b|\?"
)
_HUB = re.compile(r"(?<![\w./])[A-Za-z0-9][\w.-]{0,95}/[A-Za-z][\w.-]{1,95}")
_GAP_WORDS = frozenset([
    "of", "is", "was", "are", "were", "at", "to", "only", "just", "about", "around", "approximately", "roughly",
    "below", "under", "than", "less", "first", "token", "mean", "median", "average", "from", "against", "the",
    "original", "base", "model", "model's", "and", "its", "with", "respect", "nats", "in", "on", "harmless",
    "harmful", "prompts", "rate", "rates", "score", "scores", "accuracy", "divergence", "divergences", "a", "an",
    "now", "drops", "dropped", "fell", "falls", "reduced", "down", "up", "has", "have", "had", "stands", "measured",
    "overall", "test", "requests", "questions", "by", "definition", "for", "per", "remain", "remains", "remaining",
    "stays", "count", "total",
])
#: a change that is told by where it leads: "rises from 26 to 27"; what it is "by" is no figure
_MOVES = re.compile(r"\b(?:rises?|rose|risen|increase[sd]?|decrease[sd]?|grows?|grew|goes|went|moves?|moved|changes?|changed)"
                    r"(?: only| just| slightly)? (?=(?:from|to)\b)")  # fmt: skip
_GAP = re.compile(r"[A-Za-z']+|[^\sA-Za-z']")
_GAP_SIGNS = frozenset(":=()*-–—,≈~")
_FIGURES = (
    re.compile(r"\bkl[- ]?div(?:ergence)?\b|\bkld?\b|\bkullback[-–]leibler(?: divergence)?\b"),
    re.compile(r"\brefusal rate\b|\brefusals?\b|\brefus(?:es|ed)\b"),
    re.compile(r"\bcompliance(?: rate)?\b|\battack success rate\b|\basr\b"),
    re.compile(r"\bmmlu\b|\bpiqa\b|\bcommonsense ?qa\b|\bcsqa\b"),
    re.compile(r"\bperplexity\b|\bppl\b"),
)
#: whose the number is, by the words right before and right after it
_BEFORE = re.compile(r"\b(?:from|original(?: model)?|base(?: model)?|baseline|vs\.?|versus|against|compared (?:to|with)|instead of)"
                     r"(?:'s|’s)?[\s:(=]{0,3}(?:at |was |had |the |is |for |a |has |refuse[sd] )?$")  # fmt: skip
_AFTER = re.compile(r"(?:\s(?:harmful|refusals?|refused|prompts|requests)){0,2}\s\(?(?:(?:for|in|of|by|with|before)\s)?(?:the\s)?"
                    r"(?:original|base|baseline|before|originally)(?:\smodel)?(?=\s?[).,;]|\sand\b|$)")  # fmt: skip
#: names of models without an organisation: Llama-3, GPT-4
_BARE = re.compile(r"\b(?:[A-Z][A-Za-z]{1,20}-?\d[\w.-]{0,40}|GPT|Claude|Llama|Gemma|Mistral|Qwen|Phi|DeepSeek|Gemini)\b")
_NUMBER = re.compile(r"(?<![\w.,/-])(?:\d[\d,.]{0,20}|\.\d{1,10})")
_N = r"\d{1,6}(?:\.\d{1,4})?"
#: two numbers that are set against each other: the edited model's and the base's
_BOTH = re.compile(rf"\bfrom {_N} to {_N}|\b{_N} (?:against|vs\.?|versus|instead of|compared (?:to|with)) "
                   rf"(?:(?:the |its |an? )?(?:original|base|baseline)(?: model)?(?:'s|’s)? )?{_N}")  # fmt: skip
_TRAINING = re.compile(r"\b(?:pre-?)?training\b|\bepochs?\b|\bsteps?\b")


def prose_claims(page: Page, names: Names, file: str) -> Iterator[Claim]:
    """Claims of every sentence of a page."""
    for sentence in page.sentences:
        yield from _labelled(page, sentence, names, file)
        if len(sentence.text) <= LONGEST:
            yield from _figures(page, sentence, names, file)
            yield from _facts(page, sentence, file)
            yield from parts_of(page, sentence, file)


def _plain_statement(low: str, text: str, names: Names) -> bool:
    """Whether a sentence states something of this model, or of it and its base, and of nothing else."""
    found = [m[0].rstrip(".") for pattern in (_HUB, _BARE) for m in pattern.finditer(text)]
    others = {n.lower() for n in found}
    known = names.own | names.base
    strangers = {n for n in others if not any(n in name for name in known)}
    return not _HEDGE.search(low) and not strangers


def _figures(page: Page, sentence: Sentence, names: Names, file: str) -> Iterator[Claim]:
    low = sentence.text.lower()
    if len(low) != len(sentence.text) or not any(c.isdigit() for c in low):
        if "zero refusals" in low and _plain_statement(low, sentence.text, names):
            yield from _zero(page, sentence, file)
        return
    for pattern in _FIGURES:
        hits = list(pattern.finditer(low))
        if not hits or not _plain_statement(low, sentence.text, names):
            continue
        if hits[0][0] in ("mmlu", "piqa", "csqa") or hits[0][0].startswith("commonsense"):
            for hit in hits:
                yield from _score(page, sentence, low, hit, file)
        else:
            yield from _numbers_after(page, sentence, low, hits, file)


def _zero(page: Page, sentence: Sentence, file: str) -> Iterator[Claim]:
    line = sentence.line(sentence.text.lower().index("zero refusals"))
    yield Claim(kind="rate", says="refusals", file=file, line=line, text=page.quote(line), value=0.0, unit="share",
                keys=["safety.harmful.refuses"])  # fmt: skip


def _numbers_after(page: Page, sentence: Sentence, low: str, hits: list[re.Match[str]], file: str) -> Iterator[Claim]:
    """One figure with one number, or with two of which one is the original model's."""
    metric = metric_of(hits[0][0] if "kl" not in hits[0][0] else low[:200]) or metric_of(low[:80])
    if metric is None or re.search(r"\brefusal (?:direction|vector|behaviou?r|mechanism)", low):
        return
    if metric.kind == "rate" and re.search(r"\bharmless\b|\bbenign\b|\bover-?refus", low):
        metric = metric_of("refusals of harmless requests") or metric
    both = _BOTH.search(low) if metric.kind == "perplexity" else None
    if both is not None and _TRAINING.search(low):
        return  # from its beginning to its end, not from the base to this model
    found: list[tuple[int, Number, Subject, Relation]] = []
    whose: Subject
    for match in _NUMBER.finditer(low):
        number = _wanted(metric, low, match.start(), whole=_inside(both, match.start()))
        if number is None or re.search(r"\bby (?:about |around |over )?$", low[max(0, match.start() - 14) : match.start()]):
            continue  # "by 94%" is a change
        whose = "this model" if metric.kind == "divergence" else _whose(low, match.start(), number.end)
        found.append((match.start(), number, whose, _relation(low, match.start())))
    if not found or len(found) > 2 or len({row[2] for row in found}) != len(found):
        return
    if both is not None and sum(_inside(both, row[0]) for row in found) != 2:
        return  # "from 26 to 27 tokens": what is not one of the two numbers makes neither a perplexity
    anchor = hits[0]
    first = found[0][0]
    near = _connected(low[anchor.end() : first]) if first > anchor.end() else _leads(low[found[-1][1].end : anchor.start()])
    alone = len(found) == 1 and found[0][2] == "this model" and metric.kind != "divergence"
    if not near or (alone and _speaks_of_base(low)):
        return
    for at, number, subject, relation in found:
        line = sentence.line(at)
        if claim := claim_of(metric, number, subject, file, line, page.quote(line)):
            yield claim if claim.relation != "is" else claim.model_copy(update={"relation": relation})


def _inside(span: re.Match[str] | None, at: int) -> bool:
    return span is not None and span.start() <= at < span.end()


def _wanted(metric: Metric, low: str, at: int, *, whole: bool = False) -> Number | None:
    """The number at a place, where it has the form that the figure needs in prose; ``whole`` numbers may be anything else."""
    number = number_at(low, at)
    if number is None:
        return None
    after = low[number.end : number.end + 12]
    if metric.kind == "rate":
        return number if number.total is not None or number.percent else None
    if re.match(r"\s?(?:%|x\b|times|tokens|prompts|points|layers|-shot|[kmb]\b)|\d|\.\d|-", after):
        return None
    return number if not number.percent and number.total is None and (number.decimals or whole) else None


def _whose(low: str, start: int, end: int) -> Subject:
    before = low[max(0, start - 40) : start]
    between = re.search(r"\d", before[::-1])
    before = before[len(before) - between.start() :] if between else before
    if _BEFORE.search(before) or _AFTER.match(low[end : end + 60]):
        return "original model"
    return "this model"


def _relation(low: str, at: int) -> Relation:
    word = re.search(r"(?:\b(below|under)|\b(less|fewer) than|\bat (most)|([<≤])) ?$", low[max(0, at - 12) : at])
    more = re.search(r"(?:\bover|\bmore than|\bat least|\babove|[>≥]) ?$", low[max(0, at - 12) : at])
    return "at most" if word else "at least" if more else "is"


def _speaks_of_base(low: str) -> bool:
    """Whether a single number could be the base's."""
    return re.search(r"\b(?:original|base|baseline|unlike)\b", low) is not None


def _connected(gap: str) -> bool:
    """Whether only connecting words stand between a figure's name and its number."""
    words = _GAP.findall(_MOVES.sub(" ", gap))
    return len(gap) <= 80 and all(w in _GAP_WORDS or w in _GAP_SIGNS or w in "<≤>≥." for w in words)


def _leads(gap: str) -> bool:
    """Whether a number that stands before the figure's name belongs to it: ``3/100 refusals``, ``3% refusal rate``."""
    return gap.strip() in ("", "harmful", "prompts", "of harmful prompts", "of", "a")


_SCORE_BEFORE = re.compile(r"(\d{1,3}(?:\.\d{1,4})?)\s?%\s(?:accuracy\s)?(?:on|in|at)\s(?:the\s)?$")


def _score(page: Page, sentence: Sentence, low: str, hit: re.Match[str], file: str) -> Iterator[Claim]:
    """A benchmark's name, then its score, or ``25.3% on MMLU``."""
    metric = metric_of(low[hit.start() : hit.end() + 12])
    if metric is None or metric.kind != "score" or re.search(r"\b(?:drop|loss|lost|gain|improve\w*|points?)\b", low):
        return
    number, at = None, hit.start()
    if back := _SCORE_BEFORE.search(low[max(0, hit.start() - 40) : hit.start()]):
        at = max(0, hit.start() - 40) + back.start()
        number = number_at(low, at)
    elif (match := _NUMBER.search(low, hit.end(), hit.end() + 60)) and _connected(low[hit.end() : match.start()]):
        at, number = match.start(), number_at(low, match.start())
        if number and not (number.percent or (number.decimals and number.total is None)):
            number = None
    if number and not _speaks_of_base(low):
        line = sentence.line(at)
        if claim := claim_of(metric, number, _whose(low, at, number.end), file, line, page.quote(line)):
            yield claim


_SIZE_SAYS = re.compile(r"\b(?:has|have|with|of|a|an|is|are|this)\s(\d{1,6}(?:\.\d{1,4})?\s?(?:m|b|million|billion))[\s-]"
                        r"param(?:eter)?s?\b")  # fmt: skip
_CONTEXT_SAYS = re.compile(r"\bcontext (?:length|window|size)(?: of|:| is)? (?:up to |full )?(\d[\d,]{0,9}\s?k?)\b")
_LABEL = re.compile(r"([A-Za-z][A-Za-z ._()-]{1,48}):\s(.{1,80})")
_NEW_LINE = re.compile(r"[A-Z]")  # a line that begins otherwise may go on with the one before
_END = re.compile(r"[.!?] ")


def _facts(page: Page, sentence: Sentence, file: str) -> Iterator[Claim]:
    """Parameters, context and dtype: ``Label: value`` or a plain statement."""
    text = sentence.text
    if label := _LABEL.fullmatch(text):
        line = sentence.line(label.start(2))
        if found := fact(page, file, line, label[1], label[2].rstrip(".")):
            yield found
        return
    low = text.lower()
    if len(low) != len(text) or ("param" not in low and "context" not in low):
        return
    if _HEDGE.search(low) or not re.search(r"\bthis model\b|\bthe model\b|\bit (?:has|is)\b", low) or _speaks_of_base(low):
        return
    said: dict[str, Any]
    if size := _SIZE_SAYS.search(low):
        number = size_at(low, size.start(1))
        line = sentence.line(size.start(1))
        if number and "active" not in low and "llama" not in low:
            said = {"value": number.value, "step": number.step, "unit": "parameters"}
            yield Claim(kind="parameters", says=f"{size[1]} parameters", file=file, line=line, text=page.quote(line), **said)
    if context := _CONTEXT_SAYS.search(low):
        number = context_at(low, context.start(1))
        line = sentence.line(context.start(1))
        if number:
            said = {"value": number.value, "step": number.step, "unit": "tokens"}
            yield Claim(kind="context length", says=f"a context of {context[1]} tokens", file=file, line=line,
                        text=page.quote(line), **said)  # fmt: skip


def _labelled(page: Page, sentence: Sentence, names: Names, file: str) -> Iterator[Claim]:
    """``Label: value`` on a line of its own between lines of prose, which Markdown joins into one paragraph."""
    first, last = sentence.offset, sentence.offset + len(sentence.text)
    starts = sentence.starts
    i = bisect_left(starts, (first, 0))
    for k in range(i, bisect_left(starts, (last, 0))):
        begin, line = starts[k]
        end = min(starts[k + 1][0] - 1 if k + 1 < len(starts) else last, last)
        text = sentence.text[begin - first : end - first]
        label = _LABEL.fullmatch(text)
        if not label or len(text) == len(sentence.text) or not _NEW_LINE.match(text):
            continue  # a sentence of its own is read as one
        if end < last and not _NEW_LINE.match(sentence.text, end - first + 1):
            continue  # it goes on
        value = label[2].rstrip(".;")
        found = fact(page, file, line, label[1], value) or _figure_of(page, file, line, label[1], value)
        if found and _of_this(sentence, begin - first, names):
            yield found


def _figure_of(page: Page, file: str, line: int, label: str, value: str) -> Claim | None:
    low = label.lower()
    name = next((m for pattern in _FIGURES if (m := pattern.match(low)) and _connected(low[m.end() :])), None)
    metric = metric_of(low) if name else None
    if metric is None:
        return None
    number = number_at(value) if metric.kind == "score" else _wanted(metric, value, 0)
    if number is None or value[number.end :].strip().lower() not in ("", "nats"):
        return None
    if metric.kind == "score" and not (number.percent or number.decimals):
        return None
    return claim_of(metric, number, "this model", file, line, page.quote(line))


def _of_this(sentence: Sentence, at: int, names: Names) -> bool:
    """Whether nothing that was said before a place of a paragraph makes it one about another model, or a mere example."""
    before = f"{sentence.before} {sentence.text[max(0, at - LONGEST) : at]}".rstrip()[-LONGEST:]
    low = before.lower()
    unfinished = _END.split(low)[-1] if not low.endswith((".", "!", "?")) else ""
    strangers = [n for n in (m[0].rstrip(".").lower() for pattern in (_HUB, _BARE) for m in pattern.finditer(before))
                 if not any(n in name for name in names.own | names.base)]  # fmt: skip
    return not (low.endswith((",", "(", "-", "–", "—", "/", "&")) or strangers or _speaks_of_base(low) or _HEDGE.search(unfinished))
