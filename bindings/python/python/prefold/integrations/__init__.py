"""Classes for RAG frameworks; each module needs its framework and nothing else.

``prefold.integrations.langchain``, ``.llama_index``, ``.haystack``.
"""
