"""A scripted OpenAI-compatible endpoint for tests of one's own, that behaves, or misbehaves, as it is told.

```python
with ScriptedEndpoint("Fold the paper.", Reply(status=429, headers={"retry-after": "1"})).serve() as base_url:
    ...  # any OpenAI client, or `ada_guard.sources.Endpoint`
```
"""

from ada_guard.testing_endpoint.app import Asked, Chunk, Cut, Item, Pause, Repeat, Reply, ScriptedEndpoint

__all__ = ["Asked", "Chunk", "Cut", "Item", "Pause", "Repeat", "Reply", "ScriptedEndpoint"]
