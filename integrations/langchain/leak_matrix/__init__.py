"""What of a chat model's answer can be read where in LangChain, and which guard keeps it from being read there.

A word is planted in what a scripted model streams. Each surface of LangChain is then used as an application uses it,
and whatever it hands out is searched for the word. `python -m leak_matrix` prints the table.
"""
