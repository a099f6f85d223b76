"""What of an LLM's answer can be read where in LlamaIndex, and which guard keeps it from being read there.

A word is planted in what a scripted LLM streams. Each surface of LlamaIndex is then used as an application uses it, and
whatever it hands out, keeps or tells its observers is searched for the word.
"""
