"""Feature recipes: what a feature is, as a strict YAML file without code.

Schema ``weightsmith/feature/1``. A recipe names installed plug-ins and prompt files only; nothing in it is imported or
run. Contrasts: ``personas`` (two system prompts over neutral prompts), ``prompt_sets`` (prompts that show the feature
against prompts that lack it), ``pairs`` (prompt pairs), ``texts`` (labelled texts).
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ..errors import RecipeError, UnknownPlugin
from ..records import Strict, parse
from ..storage import canonical_json, digest_of

FEATURE = "weightsmith/feature/1"
SITES = ("last_instruction_token", "last_template_token", "response_mean", "text_mean")


class PromptSource(Strict):
    """Where prompts come from: exactly one of ``shipped``, ``list``, ``file`` or ``dataset``.

    ``column`` picks the field of JSONL, CSV, Parquet and datasets; ``split`` the split of a hub dataset.
    """

    shipped: str | None = None
    prompts: list[str] | None = Field(None, alias="list")
    file: str | None = None
    dataset: str | None = None
    column: str | None = None
    split: str = "train"
    limit: int | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _one_source(self) -> PromptSource:
        given = [n for n in ("shipped", "prompts", "file", "dataset") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError("give exactly one of shipped, list, file and dataset")
        return self


class Contrast(Strict):
    """What is compared; ``shows`` and ``lacks`` are the two system prompts of ``personas``."""

    kind: Literal["personas", "prompt_sets", "pairs", "texts"]
    shows: str | None = None
    lacks: str | None = None

    @model_validator(mode="after")
    def _personas(self) -> Contrast:
        if self.kind == "personas":
            if not (self.shows or "").strip() or not (self.lacks or "").strip():
                raise ValueError("personas need both `shows` and `lacks`")
            if (self.shows or "").split() == (self.lacks or "").split():
                raise ValueError("the two personas are identical: there is nothing to contrast")
        elif self.shows is not None or self.lacks is not None:
            raise ValueError(f"`shows` and `lacks` here belong to personas; a contrast of kind {self.kind} has them "
                             "under `prompts`")  # fmt: skip
        return self


class TwoSources(Strict):
    """Prompts of both sides; for ``pairs`` row k of one side belongs to row k of the other."""

    shows: PromptSource
    lacks: PromptSource


class SplitSizes(Strict):
    """How many prompts go to each part; the direction comes from the first, layer and amount from the second, every
    reported figure from the third."""

    extract: int = Field(96, ge=4)
    select: int = Field(48, ge=2)
    report: int = Field(48, ge=2)


class ScorerSpec(Strict):
    """One scorer by name, with its options (unknown options are refused by the scorer)."""

    kind: str
    options: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, data: Any) -> Any:
        """In YAML the options stand beside ``kind``."""
        if isinstance(data, dict) and "options" not in data:
            return {"kind": data.get("kind"), "options": {k: v for k, v in data.items() if k != "kind"}}
        return data


class FeatureSpec(Strict):
    """A parsed recipe."""

    schema_id: str = Field(FEATURE, alias="schema")
    name: str = Field(min_length=1)
    description: str
    licence: str
    contrast: Contrast
    prompts: PromptSource | TwoSources
    split: SplitSizes = Field(default_factory=SplitSizes)
    site: str = "response_mean"
    scorers: list[ScorerSpec] = []

    @field_validator("site")
    @classmethod
    def _known_site(cls, value: str) -> str:
        if value not in SITES:
            raise ValueError(f"unknown site {value!r}; one of {', '.join(SITES)}")
        return value

    @model_validator(mode="after")
    def _fits(self) -> FeatureSpec:
        two = isinstance(self.prompts, TwoSources)
        if two == (self.contrast.kind == "personas"):
            raise ValueError("personas take one prompt source; other contrasts take `shows` and `lacks`")
        if (self.contrast.kind == "texts") != (self.site == "text_mean"):
            raise ValueError("labelled texts go with the site text_mean, and only they do")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of the recipe's canonical JSON."""
        return digest_of(self.model_dump(by_alias=True))


def shipped_features() -> list[str]:
    """Names of the recipes that come with Weightsmith."""
    return sorted(e.name.removesuffix(".yaml") for e in _shipped().iterdir() if e.name.endswith(".yaml"))


def _shipped() -> Any:
    return files("weightsmith").joinpath("features/shipped")


def load_yaml(text: str, where: object) -> Any:
    """Plain data from YAML: no tags that build objects, no aliases (which can stand for gigabytes), no key twice.

    Raises:
        RecipeError: anything else, with the line where YAML knows it.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.MarkedYAMLError(problem="aliases are not taken", problem_mark=self.get_mark())
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            found = super().construct_mapping(node, deep=True)
            if len(found) != len(node.value):
                seen: set[Any] = set()
                for key, _ in node.value:
                    name = self.construct_object(key, deep=True)
                    if name in seen:
                        raise yaml.MarkedYAMLError(problem=f"the key {name!r:.60} stands twice", problem_mark=key.start_mark)
                    seen.add(name)
                raise yaml.MarkedYAMLError(problem="a key stands twice", problem_mark=node.start_mark)
            return found

    try:
        data = yaml.load(text, Loader)
        canonical_json(data)  # neither NaN nor halves of surrogate pairs nor dates: nothing that has no digest
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise RecipeError(f"not plain YAML data: {_told(error)}", where=where) from error
    return data


def _told(error: Exception) -> str:
    """What YAML says is wrong, with its line counted from 1; its own text calls every input "<unicode string>"."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    text = " ".join(str(problem or error).split())[:300]
    return f"line {mark.line + 1}: {text}" if mark is not None and problem else text


def load_feature(name: str) -> tuple[FeatureSpec, Path | None]:
    """A shipped recipe by name, or one from a YAML file; also the folder that its file paths are relative to.

    Raises:
        RecipeError: no such feature, or a malformed recipe.
    """
    path = Path(name).expanduser()
    if name in shipped_features():
        text, where, folder = _shipped().joinpath(f"{name}.yaml").read_text(encoding="utf-8"), name, None
    elif path.is_file():
        try:
            text, where, folder = path.read_text(encoding="utf-8"), str(path), path.absolute().parent
        except UnicodeDecodeError as error:
            raise RecipeError("not a UTF-8 text file", where=path, hint="save it as UTF-8") from error
    else:
        raise RecipeError("no such feature", where=name,
                          hint=f"give a YAML file, or one of {', '.join(shipped_features())}")  # fmt: skip
    spec: FeatureSpec = parse(FeatureSpec, load_yaml(text, where), where, FEATURE)
    if folder is not None:
        _check_scorers(spec, where)
    return spec, folder


def _check_scorers(spec: FeatureSpec, where: str) -> None:
    """Make the scorers once, so that a slip in their options is known before a model is loaded and not when it is measured.

    Raises:
        RecipeError: options that a scorer does not take; UnknownPlugin: no such scorer.
    """
    if not spec.scorers:
        return
    from ..measure.scorers import SCORERS

    for scorer in spec.scorers:
        try:
            if scorer.kind != "probe":  # it is made of a direction
                SCORERS.load(scorer.kind).make(scorer.options)
            elif scorer.options:
                raise RecipeError(f"the scorer 'probe' has no option {min(scorer.options)!r}", hint="it takes none")
        except (RecipeError, UnknownPlugin) as error:
            error.where = error.where or where
            raise
