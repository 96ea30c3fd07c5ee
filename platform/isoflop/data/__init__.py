"""How does text become batches? Each module is one step of the way.

sources     a path or a name -> documents, in an order that never changes
tokenizers  text <-> ids: raw bytes, tiktoken's encodings, a byte-pair vocabulary of one's own
bpe         documents -> a byte-pair vocabulary
shards      ids on disk: memory-mapped files with document boundaries and checksums
prepare     all of the above, once: split, train, encode; cached by content
loader      ids -> batches, as a pure function of seed and step
"""
