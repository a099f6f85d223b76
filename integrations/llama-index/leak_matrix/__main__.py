"""``python integrations/llama-index/leak_matrix`` prints the tables; see `llama_index_leaks`."""

from __future__ import annotations

from llama_index_leaks.command import main

if __name__ == "__main__":
    main()
