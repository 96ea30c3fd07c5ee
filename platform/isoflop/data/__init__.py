"""How does text become batches? Each module is one step of the way.

documents   what a document, a part and a source are; what was left out or mended
sources     a path or a name -> documents, in an order that never changes
formats     files of text, .jsonl and .csv, plain or compressed, huge ones in slices
parquet     the same, by row groups
hub         texts by name from Hugging Face's hub, streamed or downloaded
megatron    ready tokens of Megatron-LM
known       a generated text whose entropy, the lowest honest loss, is known exactly
vocabulary  what every tokenizer does: text <-> ids
tokenizers  a name -> a tokenizer; how one is trained, saved and loaded
plain       raw bytes, and stripped ASCII
encodings   what tiktoken runs: its own encodings, and those that were trained here
bpe         documents -> a byte-pair vocabulary
words       documents -> a vocabulary of words, or of characters
pieces      SentencePiece's models, trained or loaded
exchange    a byte-pair vocabulary -> files that transformers loads
shards      ids on disk: memory-mapped files with document boundaries and checksums
options     what may be chosen about preparing
scan        what each document of a unit of a source is: digest, size, signature
minhash     which documents are nearly the same
split       which documents count, and which are held out
corpus      a source, once read: units whose documents each have a side
encode      a unit -> token files
overlap     how much of what is held out stands in training too
prepare     all of the above, once; over processes, cached by content, continued when killed
prepared    what that leaves in a folder
remote      such a folder at a URL: a copy here, checked, within a bound
parallel    who does the work: this process, some others, a cluster
folders     folders that are whole or not there, made by one process
meter       how far it is
hashing     64 bits mixed
verify      is a prepared text still what was written?
show        what is in it?
command     `isoflop data prepare | verify | show | seen`
mixture     several sources, each prepared, with one tokenizer for all
frames      documents of ids -> rows: windows over the stream, packed documents, one document each
packing     which documents share a row
order       in which order an epoch's rows are visited
turns       which source of a mixture a row comes from
loader      all of that: the rows of a batch, as a pure function of seed and step
feed        what a run reads: the batches and the held-out rows that its text asks for
seen        which documents a run had read at a step
rows        what an objective is given: ids, each row's seed, document boundaries
"""
