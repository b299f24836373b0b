"""The options of `vtools clean`, each under the name of its option."""

from typing import NamedTuple

from vtools.records.naming import NONE, Names


class Choices(NamedTuple):
    """The options that decide about a record. Hashable (files by name): each process caches its steps by it."""

    engine: str = "auto"
    merge_same_role: bool = False
    preset: str | None = None
    keep: frozenset[str] = frozenset()
    special_tokens: str = "keep"
    pii: str | None = None
    blocked_words: str | None = None
    drop_refusals: bool = False
    refusals: str | None = None
    keep_lang: str | None = None
    skip_lang: str | None = None
    decontaminate: tuple[str, ...] = ()
    decontaminate_ngram: int = 13
    moderation: str | None = None
    moderation_model: str = ""
    dedupe: str = "first"
    near_duplicates: float | None = None
    names: Names = NONE

    def has_optional(self) -> bool:
        """Whether a step is on that is off by default and looks at one record alone."""
        files = self.blocked_words or self.refusals or self.decontaminate
        languages = self.keep_lang is not None or self.skip_lang is not None
        tokens = self.special_tokens != "keep"
        return bool(files or languages or tokens or self.drop_refusals or self.pii or self.moderation)
