"""For tests of one's own: an LLM that says what it is told, and a conformance suite for LlamaIndex LLMs."""

from llama_index.llms.ada_guard.testing.conformance import LLMConformance
from llama_index.llms.ada_guard.testing.observers import EventRecorder, RecordingCallback
from llama_index.llms.ada_guard.testing.scripted import ScriptedLLM, call_responses, word_responses

__all__ = [
    "EventRecorder",
    "LLMConformance",
    "RecordingCallback",
    "ScriptedLLM",
    "call_responses",
    "word_responses",
]
