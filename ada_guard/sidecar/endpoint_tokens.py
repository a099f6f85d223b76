"""An endpoint's tokenizer on this side: conversations as ids, and ids as the text that the server reads as them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from ada_guard.errors import ConfigError, MissingExtraError
from ada_guard.prompt import Prompt, encode_prompt
from ada_guard.reference import CHAT_DIR
from ada_guard.sidecar.protocol import Conversation
from ada_guard.spec import ModelSpec

if TYPE_CHECKING:
    from ada_guard.sidecar.view import View

__all__ = ["EndpointTokens", "PromptForm"]

PromptForm: TypeAlias = Literal["ids", "text", "text_with_bos"]
"""Token ids; or text, to which the server adds the BOS where the tokenizer does; or text, to which it adds nothing."""


class EndpointTokens:
    """A tokenizer and its Safety Tokens.

    Args:
        tokenizer: A tokenizer of transformers, its id or its folder; ``"reference"`` is the bundled one.
        spec: Derived from the tokenizer's chat template if None.

    Raises:
        ConfigError: No such tokenizer, or no chat template.
        MissingExtraError: transformers is not installed.
    """

    def __init__(self, tokenizer: Any, spec: ModelSpec | None = None) -> None:
        self.tokenizer = _loaded(tokenizer) if isinstance(tokenizer, (str, Path)) else tokenizer
        self.spec = ModelSpec.derive(self.tokenizer) if spec is None else spec

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Ids that end a turn: the tokenizer's and the template's."""
        end_of_turn = self.spec.end_of_turn.strip()
        ids = self.tokenizer.encode(end_of_turn, add_special_tokens=False) if end_of_turn else []
        ends = {self.tokenizer.eos_token_id, ids[0] if len(ids) == 1 else None}
        return frozenset(int(each) for each in ends if each is not None)

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> Prompt:
        """The prompt as the tokenizer's own template renders it; see `ada_guard.prompt.encode_prompt`."""
        try:
            return encode_prompt(self.tokenizer, self.spec, messages, tools=tools, template_kwargs=template_kwargs)
        except (UnicodeError, TypeError):
            # What tokenizers say to half a character, depending on where it stands.
            raise ConfigError("a message is not valid text: half a character, or a value that is no text") from None

    def view(self, conversation: Conversation) -> View:
        """The conversation as the endpoint's model sees it. A raw prompt is read as the server reads it."""
        from ada_guard.sidecar.view import View, view_of

        if conversation.raw_prompt is not None:
            return View(prompt=Prompt(ids=tuple(self.tokenizer.encode(conversation.raw_prompt))))
        return view_of(cast(Any, self), conversation)  # it needs a tokenizer and `encode`, not the whole model

    def shown(self, ids: Sequence[int]) -> str:
        """The text of some ids, control strings included."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def as_text(self, ids: Sequence[int], *, form: PromptForm) -> str | None:
        """The text that the server reads as exactly these ids; None where there is none.

        There is none where untrusted text holds a control string: as text it could not be told from a real one.
        """
        text = self.shown(ids)
        if form == "text" and (bos := self.tokenizer.bos_token):
            text = text.removeprefix(bos)
        same = bool(text) and self.tokenizer.encode(text, add_special_tokens=form == "text") == list(ids)
        return text if same else None


def _loaded(source: str | Path) -> Any:
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise MissingExtraError("a self-check of an endpoint", "local") from None
    try:
        return AutoTokenizer.from_pretrained(CHAT_DIR if str(source) == "reference" else source)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(
            f"cannot load the tokenizer {str(source)!r}: no such folder or id ({type(error).__name__})"
        ) from None
